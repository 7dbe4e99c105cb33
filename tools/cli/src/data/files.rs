//! The files that the paths of a config name: files, directories of parts, and patterns.

use anyhow::{Context, Result, bail, ensure};
use glob::{MatchOptions, Pattern};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The files that `paths`, which start in `directory`, name. Those of a directory or of a pattern
/// are sorted by name.
pub(super) fn find(directory: &Path, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let place = directory.join(path);
        let has_wildcard = path.to_string_lossy().contains(['*', '?', '[']);
        if place.is_dir() {
            files.extend(parts(&place)?);
        } else if place.exists() || !has_wildcard {
            files.push(place);
        } else {
            files.extend(matching(directory, path)?);
        }
    }
    Ok(files)
}

/// The files of a directory, without those that programs hide in it, such as `_SUCCESS`.
fn parts(directory: &Path) -> Result<Vec<PathBuf>> {
    let place = directory.display();
    let unreadable = || format!("{place}: cannot read the directory");
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']))
        {
            continue;
        }
        ensure!(
            !path.is_dir(),
            "{place}: has the directory {:?}: expected files only, or a pattern such as \
             \"{place}/*/*\"",
            path.file_name().unwrap_or_default()
        );
        files.push(path);
    }
    ensure!(!files.is_empty(), "{place}: the directory has no files");
    files.sort();
    Ok(files)
}

/// The files that match a pattern, and the files of the directories that match it.
fn matching(directory: &Path, pattern: &Path) -> Result<Vec<PathBuf>> {
    let place = pattern.display();
    let whole = match pattern.is_absolute() || directory == Path::new("") {
        true => pattern.to_owned(),
        false => Path::new(&Pattern::escape(&directory.to_string_lossy())).join(pattern),
    };
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let Ok(found) = glob::glob_with(&whole.to_string_lossy(), options) else {
        bail!("{place}: is no file, and no pattern either: expected *, ?, [...] or **");
    };
    let mut files = Vec::new();
    for path in found {
        let path = path.with_context(|| format!("{place}: cannot read a directory"))?;
        if path.is_dir() {
            files.extend(parts(&path)?)
        } else {
            files.push(path)
        }
    }
    ensure!(
        !files.is_empty(),
        "{}: the pattern matches no file",
        directory.join(pattern).display()
    );
    Ok(files)
}
