//! Files and folders of a test, in the temporary folder.

use std::fs;
use std::path::PathBuf;
use std::process;

use crate::scenario::is_child;

/// A file or folder that is removed when this is dropped.
#[derive(Debug)]
pub struct Temporary(pub PathBuf);

impl Temporary {
    /// Returns the path of a file of this process that is not made yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("hayloft-{name}-{}", process::id())))
    }

    /// Makes a new folder. In the child of a scenario, returns only its name.
    ///
    /// # Panics
    ///
    /// If the folder cannot be made.
    #[must_use]
    pub fn folder(name: &str) -> Self {
        let folder = Self::new(name);
        if !is_child() {
            fs::create_dir(&folder.0).expect("the folder can be created");
        }
        folder
    }

    /// Returns the contents of the file, or nothing if there is none.
    #[must_use]
    pub fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0));
    }
}
