//! Folders to the manifest files in them and below. Symbolic links are followed (a ConfigMap mount is made of them),
//! hidden names are not looked at, a directory is read once however many links lead to it. Reads no file.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::problem::{Problem, Severity};

/// Files looked at: far beyond one file per object of 10,000 Services, and an end to a folder given by mistake.
const MAX_FILES: usize = 65_536;
/// Levels of folders below the one given.
const MAX_FOLDERS_DEEP: usize = 16;

/// What one walk found.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) files: Vec<((usize, PathBuf), Metadata)>,
    directories: HashSet<(u64, u64)>,
    pub(super) problems: Vec<Problem>,
    /// Roots and folders that could not be read: what is below them stays as it was.
    pub(super) unread: Vec<(usize, PathBuf)>,
}

impl Walk {
    /// Adds what is in and below `root`, or `root` itself if it is a file.
    pub(super) fn root(&mut self, index: usize, root: &Path) {
        match fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => self.directory(index, root, &metadata, 0),
            Ok(metadata) => self.file(index, root, metadata),
            Err(error) => self.unread(index, root, &error),
        }
    }

    fn unread(&mut self, index: usize, path: &Path, error: &io::Error) {
        let message = match error.kind() {
            io::ErrorKind::NotFound => "does not exist; waiting for it".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        self.problems
            .push(Problem::of_file(Severity::Error, path, message));
        self.unread.push((index, path.to_owned()));
    }

    fn file(&mut self, index: usize, path: &Path, metadata: Metadata) {
        if self.files.len() >= MAX_FILES {
            // Once is enough said.
            if self
                .problems
                .last()
                .is_none_or(|p| !p.message.starts_with("is left out"))
            {
                let message = format!("is left out, as all after it: more than {MAX_FILES} files");
                self.problems
                    .push(Problem::of_file(Severity::Error, path, message));
            }
            return;
        }
        self.files.push(((index, path.to_owned()), metadata));
    }

    fn directory(&mut self, index: usize, path: &Path, metadata: &Metadata, depth: usize) {
        if !self.directories.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        if depth > MAX_FOLDERS_DEEP {
            let message = format!("is left out: more than {MAX_FOLDERS_DEEP} folders deep");
            self.problems
                .push(Problem::of_file(Severity::Error, path, message));
            return;
        }
        let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.unread(index, path, &error),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            // Gone since it was listed, or a link to nowhere: as if it had never been.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                self.directory(index, &path, &metadata, depth + 1);
            } else if metadata.is_file()
                && path
                    .extension()
                    .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known))
            {
                self.file(index, &path, metadata);
            }
        }
    }
}
