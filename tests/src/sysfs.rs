//! Made-up sysfs trees for `HAYLOFT_SYSFS`, with nodes and their CPUs or with modes of huge pages,
//! and pinning to CPUs.

use std::env;
use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Environment variable that names the tree.
pub const SYSFS: &str = "HAYLOFT_SYSFS";

/// A made-up sysfs tree, removed when dropped. Empty in a child process whose parent made the tree.
#[derive(Debug)]
pub struct Tree(Option<PathBuf>);

impl Tree {
    /// Makes a tree of nodes, each given by its number and its CPU list.
    ///
    /// # Panics
    ///
    /// If the files cannot be written.
    #[must_use]
    pub fn new<'a>(nodes: impl IntoIterator<Item = (usize, &'a str)>) -> Self {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let numbers: Vec<_> = nodes.iter().map(|(number, _)| number.to_string()).collect();
        let tree = Self::with_online(&numbers.join(","));
        for (number, cpus) in nodes {
            tree.add(&format!("devices/system/node/node{number}/cpulist"), cpus);
        }
        tree
    }

    /// Makes a tree whose `online` file is `list` but which has no nodes.
    ///
    /// # Panics
    ///
    /// If the files cannot be written.
    #[must_use]
    pub fn with_online(list: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        if env::var_os(SYSFS).is_some() {
            return Self(None);
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = env::temp_dir().join(format!("hayloft-sysfs-{}-{number}", process::id()));
        let tree = Self(Some(root));
        tree.add("devices/system/node/online", list);
        tree
    }

    /// Makes a tree with one node, of a system that allows these modes of huge pages.
    ///
    /// # Panics
    ///
    /// If the files cannot be written.
    #[must_use]
    pub fn with_huge_pages(modes: &str) -> Self {
        let tree = Self::new([(0, "0-4095")]);
        tree.add("kernel/mm/transparent_hugepage/enabled", modes);
        tree
    }

    /// Adds a file with one line.
    fn add(&self, path: &str, line: &str) {
        if let Some(root) = &self.0 {
            let file = root.join(path);
            let folder = file.parent().expect("the file is in a directory");
            fs::create_dir_all(folder).expect("the directory can be created");
            fs::write(file, format!("{line}\n")).expect("the file can be written");
        }
    }

    /// Returns the tree's root directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(root) = &self.0 {
            let _ = fs::remove_dir_all(root);
        }
    }
}

/// Returns the CPUs on which a thread may run, in order. 0 stands for the calling thread.
///
/// # Panics
///
/// If there is no such thread.
#[must_use]
pub fn affinity(thread: libc::pid_t) -> Vec<usize> {
    // SAFETY: the set is local and of the size passed to the kernel. All zeros are an empty set.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        let result = libc::sched_getaffinity(thread, size_of_val(&set), &raw mut set);
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        set
    };
    // SAFETY: the CPU number is below `CPU_SETSIZE`.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Restricts a thread to some CPUs. 0 stands for the calling thread.
///
/// # Panics
///
/// If the kernel refuses.
pub fn set_affinity(thread: libc::pid_t, cpus: &[usize]) {
    // SAFETY: the set is local and of the size passed to the kernel. All zeros are an empty set.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(thread, size_of_val(&set), &raw const set)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Returns two CPUs on which this thread may run, or `None` if it may use only one.
#[must_use]
pub fn two_cpus() -> Option<[usize; 2]> {
    affinity(0).first_chunk().copied()
}

/// Pins this thread to one CPU.
///
/// # Panics
///
/// If the kernel refuses.
pub fn pin_to(cpu: usize) {
    set_affinity(0, &[cpu]);
}

/// Pins this thread to its current CPU.
///
/// # Panics
///
/// If the kernel refuses.
pub fn pin_here() {
    // SAFETY: `sched_getcpu` has no preconditions.
    pin_to(usize::try_from(unsafe { libc::sched_getcpu() }).expect("a CPU"));
}
