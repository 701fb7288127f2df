//! Cgroups that confine a process to some CPUs or limit its memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// A child of this process's cgroup. Dropping it removes the cgroup, provided that its processes
/// have ended.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a child cgroup whose `controller` is configured through `file`. The hierarchy is
    /// version 1's mount of that controller at its usual path, or version 2's. Returns `None` if
    /// neither offers `file`, or if this process may not create cgroups.
    fn new(controller: &str, file: &str) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            // Version 2 has a single unnamed hierarchy, version 1 one for each controller.
            let (root, path) = match line.split_once("::") {
                Some((_, path)) => (PathBuf::from("/sys/fs/cgroup"), path),
                None => {
                    let path = line.split_once(&format!(":{controller}:"))?.1;
                    (Path::new("/sys/fs/cgroup").join(controller), path)
                }
            };
            let parent = root.join(path.trim_start_matches('/'));
            let group = Self(parent.join(format!("hayloft-{controller}-{}", process::id())));
            fs::create_dir(&group.0).ok()?;
            group.0.join(file).exists().then_some(group)
        })
    }

    /// Creates a cpuset without processes. Returns `None` if none can be created.
    #[must_use]
    pub fn cpuset() -> Option<Self> {
        let cpuset = Self::new("cpuset", "cpuset.cpus")?;
        // Version 1 admits processes only after both files are set.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let inherited = fs::read(cpuset.0.parent()?.join(file)).ok()?;
            fs::write(cpuset.0.join(file), inherited).ok()?;
        }
        Some(cpuset)
    }

    /// Creates a cgroup whose processes are killed when they use more than `most` bytes of memory.
    /// Returns `None` if none can be created.
    #[must_use]
    pub fn with_memory_limit(most: usize) -> Option<Self> {
        let (one, two) = ("memory.limit_in_bytes", "memory.max");
        let (group, file) = match Self::new("memory", two) {
            Some(group) => (group, two),
            None => (Self::new("memory", one)?, one),
        };
        fs::write(group.0.join(file), most.to_string()).ok()?;
        // Allows no swap, where there is any.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        let _ = fs::write(group.0.join("memory.memsw.limit_in_bytes"), most.to_string());
        Some(group)
    }

    /// Returns the cgroup's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Moves this process to the cgroup at `group`.
///
/// # Errors
///
/// If the kernel refuses.
pub fn join(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), process::id().to_string())
}

/// Restricts the cpuset at `cpuset` to `cpus`, and moves this process to it.
///
/// # Errors
///
/// If the kernel refuses.
pub fn confine_to(cpuset: &Path, cpus: &[usize]) -> io::Result<()> {
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    fs::write(cpuset.join("cpuset.cpus"), cpus.join(","))?;
    join(cpuset)
}
