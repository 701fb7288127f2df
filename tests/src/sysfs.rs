//! A tree such as sysfs, with nodes and the CPUs of each, for `HAYLOFT_SYSFS`.

use std::env;
use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The variable that names the tree.
pub const SYSFS: &str = "HAYLOFT_SYSFS";

/// A tree, removed when dropped. In a child that has one already, nothing.
#[derive(Debug)]
pub struct Tree(Option<PathBuf>);

impl Tree {
    /// A tree of nodes, each with its number and the list of its CPUs.
    ///
    /// # Panics
    ///
    /// If there can be no files.
    #[must_use]
    pub fn new<'a>(nodes: impl IntoIterator<Item = (usize, &'a str)>) -> Self {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let numbers: Vec<_> = nodes.iter().map(|(number, _)| number.to_string()).collect();
        let tree = Self::with_online(&numbers.join(","));
        if let Some(root) = &tree.0 {
            for (number, cpus) in nodes {
                let node = root.join(format!("devices/system/node/node{number}"));
                fs::create_dir(&node).expect("a directory");
                fs::write(node.join("cpulist"), format!("{cpus}\n")).expect("a file");
            }
        }
        tree
    }

    /// A tree without nodes, with a list that names some.
    ///
    /// # Panics
    ///
    /// If there can be no files.
    #[must_use]
    pub fn with_online(list: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        if env::var_os(SYSFS).is_some() {
            return Self(None);
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = env::temp_dir().join(format!("hayloft-sysfs-{}-{number}", process::id()));
        let nodes = root.join("devices/system/node");
        fs::create_dir_all(&nodes).expect("a directory");
        fs::write(nodes.join("online"), format!("{list}\n")).expect("a file");
        Self(Some(root))
    }

    /// Where it is.
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

/// Two CPUs on which this process may run; `None` where there is one only.
#[must_use]
pub fn two_cpus() -> Option<[usize; 2]> {
    // SAFETY: a set that is ours, and as long as the kernel is told; zeros are an empty one.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        (libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) == 0).then_some(set)
    }?;
    // SAFETY: the number is below those that a set has.
    let mut cpus =
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
    Some([cpus.next()?, cpus.next()?])
}

/// Has this thread run on one CPU only.
///
/// # Panics
///
/// If the kernel refuses.
pub fn pin_to(cpu: usize) {
    // SAFETY: a set that is ours, and as long as the kernel is told.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Has this thread stay on the CPU that it runs on.
///
/// # Panics
///
/// If the kernel refuses.
pub fn pin_here() {
    // SAFETY: a number only.
    pin_to(usize::try_from(unsafe { libc::sched_getcpu() }).expect("a CPU"));
}
