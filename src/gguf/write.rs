//! Writing a file in two phases: every size and offset first, then bytes at their positions, and the name last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fs4::FileExt;
use tempfile::NamedTempFile;

use super::error::{Check, Error};
use super::header::{Header, alignment_of, check_keys};
use super::{Metadata, positional};

/// What may happen at the place of the output.
#[derive(Clone, Default, Debug)]
pub struct WriteOptions {
    /// Whether an existing file may be replaced.
    pub overwrite: bool,
    /// Files the output must not be, also through links.
    pub inputs: Vec<PathBuf>,
}

impl WriteOptions {
    /// Checks that a file of `len` bytes can take this name: it is no input, no folder or device, nothing that may not be
    /// replaced, and the disk has room. Returns the name with a symbolic link followed, so that a link survives.
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::OutputIsInput`], [`Error::OutputKind`],
    /// [`Error::NoFolder`], [`Error::NoSpace`], [`Error::Io`].
    pub fn check(&self, path: &Path, len: u64) -> Result<PathBuf, Error> {
        // Nothing may be there yet, but no file can ever be: the rename would fail after all the work.
        let name = path.as_os_str().as_encoded_bytes();
        if path.file_name().is_none()
            || name.ends_with(b"/.")
            || name.last().is_some_and(|&b| std::path::is_separator(b.into()))
        {
            return Err(Error::OutputKind { path: path.to_owned(), found: "the name of a folder" });
        }
        let mut target = path.to_owned();
        // A link to a missing file may still name an output; `canonicalize` would fail on it.
        for _ in 0..40 {
            let Ok(to) = fs::read_link(&target) else { break };
            target = folder_of(&target).join(to);
        }
        match fs::metadata(&target) {
            Ok(about) => {
                for input in &self.inputs {
                    if same_file::is_same_file(&target, input).unwrap_or(false) {
                        return Err(Error::OutputIsInput { path: path.to_owned(), input: input.clone() });
                    }
                }
                if !about.is_file() {
                    let found = if about.is_dir() { "a folder" } else { "a device or pipe" };
                    return Err(Error::OutputKind { path: path.to_owned(), found });
                }
                if !self.overwrite {
                    return Err(Error::OutputExists { path: path.to_owned() });
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::io(path, "look at")(e)),
        }
        let folder = folder_of(&target);
        if !folder.is_dir() {
            return Err(Error::NoFolder { path: path.to_owned(), folder: folder.to_owned() });
        }
        let available = fs4::available_space(folder).map_err(Error::io(folder, "find the free space of"))?;
        if available < len {
            return Err(Error::NoSpace { path: path.to_owned(), needed: len, available });
        }
        Ok(target)
    }
}

/// The folder a file is in, also for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A file on its way: a temporary neighbour of the target, with room for all of it. Dropped unfinished, it disappears.
///
/// Bytes may come from any thread in any order. The header is written last, because some of its values (what the run
/// measured) are known only then; their size is fixed from the start.
#[derive(Debug)]
pub struct Writer {
    header: Header,
    file: NamedTempFile,
    target: PathBuf,
    overwrite: bool,
    written: AtomicU64,
}

/// A file with all its bytes, which is to be given its name. Dropped without, it disappears.
#[derive(Debug)]
pub struct Complete {
    file: NamedTempFile,
    target: PathBuf,
    overwrite: bool,
    len: u64,
}

/// A file that took its final name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    /// The final name, links followed.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

impl Writer {
    /// Checks the target, then makes the temporary file beside it and takes the disk space it needs.
    ///
    /// # Errors
    /// Those of [`WriteOptions::check`].
    pub fn create(header: Header, path: &Path, options: &WriteOptions) -> Result<Self, Error> {
        let len = header.file_len();
        let target = options.check(path, len)?;
        let file = temporary(&target, path, len)?;
        Ok(Writer { header, file, target, overwrite: options.overwrite, written: AtomicU64::new(0) })
    }

    /// The header as planned.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes bytes of a tensor, `offset` bytes after its start. Each byte is to be written once.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If there is no such tensor or the range reaches beyond it.
    pub fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let info = &self.header.tensors()[tensor];
        info.assert_range(offset, bytes.len());
        let at = self.header.data_offset() + info.offset() + offset;
        positional::write_all_at(self.file.as_file(), bytes, at).map_err(Error::io(&self.target, "write"))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the header, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// Those of [`Writer::complete`] and [`Complete::publish`].
    pub fn finish(self, metadata: Option<Metadata>) -> Result<Finished, Error> {
        self.complete(metadata)?.publish()
    }

    /// Writes the header and makes the file durable; it has no name yet.
    ///
    /// `metadata` replaces the planned metadata and must take the same number of bytes: the same keys with values of the
    /// same size, and the same alignment.
    ///
    /// # Errors
    /// [`Error::Layout`] if bytes of data are missing, or the header changed its size or its alignment, [`Error::Io`].
    pub fn complete(mut self, metadata: Option<Metadata>) -> Result<Complete, Error> {
        let expected: u64 = self.header.tensors().iter().map(|t| t.size()).sum();
        let written = self.written.load(Ordering::Relaxed);
        let layout = |place: &str, expected: u64, found: u64| Error::Layout {
            check: Check::Size,
            place: place.to_owned(),
            expected: format!("{expected} bytes"),
            found: found.to_string(),
        };
        if written != expected {
            return Err(layout("data section", expected, written));
        }
        if let Some(metadata) = metadata {
            check_keys(&metadata)?;
            // The data lie where the planned alignment put them.
            let alignment = alignment_of(&metadata);
            if alignment.as_ref() != Ok(&self.header.alignment) {
                return Err(Error::Layout {
                    check: Check::Alignment,
                    place: "general.alignment".to_owned(),
                    expected: self.header.alignment.to_string(),
                    found: alignment.map_or_else(|(_, _, found)| found, |n| n.to_string()),
                });
            }
            self.header.metadata = metadata;
        }
        let bytes = self.header.encode();
        if bytes.len() as u64 != self.header.len {
            return Err(layout("header", self.header.len, bytes.len() as u64));
        }
        let Writer { header, file, target, overwrite, .. } = self;
        positional::write_all_at(file.as_file(), &bytes, 0).map_err(Error::io(&target, "write"))?;
        file.as_file().sync_all().map_err(Error::io(&target, "write"))?;
        Ok(Complete { len: header.file_len(), file, target, overwrite })
    }
}

impl Complete {
    /// A file of bytes that are no GGUF, on its way under the same rules.
    ///
    /// # Errors
    /// Those of [`WriteOptions::check`].
    pub fn from_bytes(bytes: &[u8], path: &Path, options: &WriteOptions) -> Result<Self, Error> {
        let len = bytes.len() as u64;
        let target = options.check(path, len)?;
        let file = temporary(&target, path, len)?;
        positional::write_all_at(file.as_file(), bytes, 0).map_err(Error::io(&target, "write"))?;
        file.as_file().sync_all().map_err(Error::io(&target, "write"))?;
        Ok(Complete { len, file, target, overwrite: options.overwrite })
    }

    /// Where it is meanwhile, beside its target.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::NotRenamed`]; the file is then kept under the name that the error gives.
    pub fn publish(self) -> Result<Finished, Error> {
        let Complete { file, target, overwrite, len } = self;
        rename(file, &target, overwrite)?;
        // The rename itself has happened: a folder that cannot be synced is no reason to call the run a failure.
        let _ = positional::sync_folder(folder_of(&target));
        Ok(Finished { path: target, len })
    }

    /// Gives the file its name with `suffix` behind it instead, in place of whatever has that name.
    ///
    /// # Errors
    /// As [`Complete::publish`].
    pub fn publish_with_suffix(mut self, suffix: &str) -> Result<Finished, Error> {
        self.target.as_mut_os_string().push(suffix);
        self.overwrite = true;
        self.publish()
    }
}

/// A temporary neighbour of the target (which errors call `path`) that has its disk space.
fn temporary(target: &Path, path: &Path, len: u64) -> Result<NamedTempFile, Error> {
    let folder = folder_of(target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".chatvec-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one becomes an ordinary file, by the user's umask.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder).map_err(Error::io(folder, "make a temporary file in"))?;
    match file.as_file().allocate(len) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::StorageFull => {
            let available = fs4::available_space(folder).unwrap_or(0);
            return Err(Error::NoSpace { path: path.to_owned(), needed: len, available });
        }
        // A quota has no number to show, but is as final as a full disk.
        Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
            return Err(Error::io(path, "take the disk space for it")(e));
        }
        // File systems without preallocation still take the writes.
        Err(_) => file.as_file().set_len(len).map_err(Error::io(path, "set the length of"))?,
    }
    Ok(file)
}

/// Gives the file its name; without `overwrite` never in place of another that appeared meanwhile.
fn rename(file: NamedTempFile, target: &Path, overwrite: bool) -> Result<(), Error> {
    let result = if overwrite { file.persist(target) } else { file.persist_noclobber(target) };
    let result = match result {
        // Some file systems can neither rename without replacing nor link (exFAT, some network mounts).
        Err(e) if !overwrite && e.error.kind() != io::ErrorKind::AlreadyExists && !target.exists() => {
            e.file.persist(target)
        }
        other => other,
    };
    match result {
        Ok(_) => Ok(()),
        Err(e) => {
            // Hours of work may be in it: keep it and say where.
            let kept = e.file.path().to_owned();
            let path = target.to_owned();
            match e.file.keep() {
                Ok((_, kept)) => Err(Error::NotRenamed { path, kept, source: e.error }),
                Err(k) => Err(Error::NotRenamed { path, kept, source: k.error }),
            }
        }
    }
}
