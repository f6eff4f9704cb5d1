//! Writing a file in two phases: every size and offset first, then bytes at their positions, and
//! the name last.

mod anew;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use fs4::FileExt;
use tempfile::{NamedTempFile, TempDir};

use super::error::{Check, Error};
use super::header::{Header, alignment_of, check_keys};
use super::split::{self, Shard};
use super::{Metadata, positional};

/// What may happen at the place of the output.
#[derive(Clone, Default, Debug)]
pub struct WriteOptions {
    /// Whether an existing file may be replaced.
    pub overwrite: bool,
    /// Files the output must not be, also through links.
    pub inputs: Vec<PathBuf>,
    /// Bytes of tensors that a file may hold; what is longer is written as a set of shards,
    /// `NAME-00001-of-00003.gguf`.
    pub split_max_size: Option<u64>,
}

impl WriteOptions {
    /// Checks that this output can be written here: [`WriteOptions::check_name`] for each of its
    /// files. Returns their names.
    ///
    /// # Errors
    /// Those of [`WriteOptions::check_name`], [`Error::TooManyShards`], [`Error::Layout`].
    pub fn check(&self, path: &Path, header: &Header) -> Result<Vec<PathBuf>, Error> {
        let shards = split::split(header.clone(), self.split_max_size)?;
        self.check_shards(path, &shards)
    }

    fn check_shards(&self, path: &Path, shards: &[Shard]) -> Result<Vec<PathBuf>, Error> {
        let len = shards.iter().map(|s| s.header.file_len()).sum();
        if shards.len() == 1 {
            return Ok(vec![self.check_name(path, len)?]);
        }
        // That it is no folder's name shows in the name as given.
        WriteOptions { overwrite: true, ..self.clone() }.check_name(path, len)?;
        (1..=shards.len()).map(|no| self.check_name(&split::shard_of(path, no, shards.len()), len)).collect()
    }

    /// Checks that a file of `len` bytes can take this name: it is no input, no folder or device,
    /// nothing that may not be replaced, and the disk has room. Returns the name with a symbolic
    /// link followed, so that a link survives.
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::OutputIsInput`], [`Error::OutputKind`],
    /// [`Error::NoFolder`], [`Error::NoSpace`], [`Error::Io`].
    pub fn check_name(&self, path: &Path, len: u64) -> Result<PathBuf, Error> {
        // Nothing may be there yet, but no file can ever be: the rename would fail after all the
        // work.
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
                // First of all, because to compare a pipe with a file waits for someone at its
                // other end.
                if !about.is_file() {
                    let found = if about.is_dir() { "a folder" } else { "a device or pipe" };
                    return Err(Error::OutputKind { path: path.to_owned(), found });
                }
                for input in &self.inputs {
                    if same_file::is_same_file(&target, input).unwrap_or(false) {
                        return Err(Error::OutputIsInput { path: path.to_owned(), input: input.clone() });
                    }
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
            return Err(Error::NoSpace { path: path.to_owned(), needed: len, temporary: 0, available });
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

/// An output on its way: a temporary neighbour of the target, or several, with room for all of it.
/// Dropped unfinished, it disappears.
///
/// Bytes may come from any thread in any order. The header is written last, because some of its
/// values (what the run measured) are known only then; their size is fixed from the start.
#[derive(Debug)]
pub struct Writer {
    /// At least one.
    parts: Vec<OutputFile>,
    /// The file and the position in it of each tensor.
    places: Vec<(usize, usize)>,
    // Dropped after the files in it.
    files: Files,
}

/// One file of an output.
#[derive(Debug)]
struct OutputFile {
    header: Header,
    file: NamedTempFile,
    target: PathBuf,
    written: AtomicU64,
    /// A thread that waits for the disk.
    flush: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// After as many bytes the disk is set to work: what it does while others compute need not be
/// waited for in the end.
const FLUSH_BYTES: u64 = 64 << 20;

/// What files need until they have their names.
#[derive(Debug)]
struct Files {
    overwrite: bool,
    /// The name as asked for; that of the file, if there is one.
    path: PathBuf,
    /// Shards find each other by name: unnamed ones are in a folder of their own.
    folder: Option<TempDir>,
}

/// An output with all its bytes, which is to be given its name. Dropped without, it disappears.
#[derive(Debug)]
pub struct Complete {
    parts: Vec<(NamedTempFile, PathBuf)>,
    len: u64,
    files: Files,
}

/// An output that took its final name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    /// The final name, links followed; of several files, the first.
    pub path: PathBuf,
    /// How many files there are.
    pub n_files: usize,
    /// Their length in bytes, all together.
    pub len: u64,
}

impl Writer {
    /// Checks the target, then makes the temporary file beside it and takes the disk space it
    /// needs.
    ///
    /// # Errors
    /// Those of [`WriteOptions::check`].
    pub fn create(header: Header, path: &Path, options: &WriteOptions) -> Result<Self, Error> {
        let shards = split::split(header, options.split_max_size)?;
        let targets = options.check_shards(path, &shards)?;
        let folder = match &targets[..] {
            [] | [_] => None,
            [target, ..] => {
                let parent = folder_of(target);
                Some(temporary().tempdir_in(parent).map_err(Error::io(parent, "make a temporary folder in"))?)
            }
        };
        let mut places = Vec::new();
        let mut parts = Vec::new();
        for (part, (Shard { header, first_tensor }, target)) in shards.into_iter().zip(targets).enumerate() {
            debug_assert_eq!(first_tensor, places.len());
            places.extend((0..header.tensors().len()).map(|tensor| (part, tensor)));
            parts.push(OutputFile::create(header, target, folder.as_ref().map(TempDir::path))?);
        }
        let path = if folder.is_some() { path.to_owned() } else { parts[0].target.clone() };
        Ok(Writer { parts, places, files: Files { overwrite: options.overwrite, path, folder } })
    }

    /// The header as planned; of several files, that of the first.
    pub fn header(&self) -> &Header {
        &self.parts[0].header
    }

    /// Writes bytes of a tensor, `offset` bytes after its start. Each byte is to be written once.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If there is no such tensor or the range reaches beyond it.
    pub fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let (part, tensor) = self.places[tensor];
        self.parts[part].write(tensor, offset, bytes)
    }

    /// How many files there will be.
    pub fn n_files(&self) -> usize {
        self.parts.len()
    }

    /// Reads back bytes of a tensor that were written.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If there is no such tensor or the range reaches beyond it.
    pub fn read(&self, tensor: usize, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (part, tensor) = self.places[tensor];
        let OutputFile { header, file, target, .. } = &self.parts[part];
        let info = &header.tensors()[tensor];
        info.assert_range(offset, buf.len());
        let at = header.data_offset() + info.offset() + offset;
        positional::read_exact_at(file.as_file(), buf, at).map_err(Error::io(target, "read back"))
    }

    /// Writes the header, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// Those of [`Writer::complete`] and [`Complete::publish`].
    pub fn finish(self, metadata: Option<Metadata>) -> Result<Finished, Error> {
        self.complete(metadata)?.publish()
    }

    /// Writes the headers and makes the files durable; they have no names yet.
    ///
    /// `metadata` replaces the planned metadata (of a set: those of the first file, which keeps its
    /// own keys of the split) and must take the same number of bytes: the same keys with values of
    /// the same size, and the same alignment.
    ///
    /// # Errors
    /// [`Error::Layout`] if bytes of data are missing, or the header changed its size or its
    /// alignment, [`Error::Io`].
    pub fn complete(mut self, metadata: Option<Metadata>) -> Result<Complete, Error> {
        if let Some(mut metadata) = metadata {
            check_keys(&metadata)?;
            let header = &mut self.parts[0].header;
            for (key, value) in header.metadata.iter().filter(|(key, _)| key.starts_with("split.")) {
                metadata.set(key, value.clone());
            }
            // The data lie where the planned alignment put them.
            let alignment = alignment_of(&metadata);
            if alignment.as_ref() != Ok(&header.alignment) {
                return Err(Error::Layout {
                    check: Check::Alignment,
                    place: "general.alignment".to_owned(),
                    expected: header.alignment.to_string(),
                    found: alignment.map_or_else(|(_, _, found)| found, |n| n.to_string()),
                });
            }
            header.metadata = metadata;
        }
        let Writer { parts, files, .. } = self;
        let len = parts.iter().map(|part| part.header.file_len()).sum();
        let parts = parts.into_iter().map(OutputFile::complete).collect::<Result<_, _>>()?;
        Ok(Complete { parts, len, files })
    }
}

/// How temporary files and folders are called.
fn temporary<'a>() -> tempfile::Builder<'a, 'a> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".chatvec-").suffix(".tmp");
    builder
}

/// A temporary file with `len` bytes of the disk: a neighbour of the target, or by the target's
/// name in `folder`.
fn with_room(folder: Option<&Path>, target: &Path, len: u64) -> Result<NamedTempFile, Error> {
    let mut builder = temporary();
    if folder.is_some() {
        builder.prefix(target.file_name().unwrap_or_default()).suffix("").rand_bytes(0);
    }
    let folder = folder.unwrap_or(folder_of(target));
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one becomes an ordinary file, by the user's
        // umask.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder).map_err(Error::io(folder, "make a temporary file in"))?;
    match file.as_file().allocate(len) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::StorageFull => {
            let available = fs4::available_space(folder).unwrap_or(0);
            return Err(Error::NoSpace { path: target.to_owned(), needed: len, temporary: 0, available });
        }
        // A quota and a limit of the process (`ulimit -f`) have no number to show, but are as final
        // as a full disk.
        Err(e) if matches!(e.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
            return Err(Error::io(target, "have a file of this length (a quota or a limit such as ulimit -f)")(e));
        }
        // File systems without preallocation still take the writes.
        Err(_) => file.as_file().set_len(len).map_err(Error::io(target, "set the length of"))?,
    }
    Ok(file)
}

impl OutputFile {
    fn create(header: Header, target: PathBuf, folder: Option<&Path>) -> Result<Self, Error> {
        let file = with_room(folder, &target, header.file_len())?;
        Ok(OutputFile { header, file, target, written: AtomicU64::new(0), flush: Mutex::default() })
    }

    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let info = &self.header.tensors()[tensor];
        info.assert_range(offset, bytes.len());
        let at = self.header.data_offset() + info.offset() + offset;
        positional::write_all_at(self.file.as_file(), bytes, at).map_err(Error::io(&self.target, "write"))?;
        let before = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if before / FLUSH_BYTES < (before + bytes.len() as u64) / FLUSH_BYTES {
            self.start_flush().map_err(Error::io(&self.target, "write"))?;
        }
        Ok(())
    }

    /// Has a thread bring what is written to the disk, unless one is at it.
    fn start_flush(&self) -> io::Result<()> {
        let mut flush = self.flush.lock().unwrap_or_else(|e| e.into_inner());
        if flush.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        flush.take().map_or(Ok(()), end_of)?;
        // Without a thread all is left to the end.
        if let Ok(file) = self.file.as_file().try_clone() {
            *flush = thread::Builder::new().name("flush".to_owned()).spawn(move || file.sync_data()).ok();
        }
        Ok(())
    }

    /// Writes the header and makes the file durable.
    fn complete(self) -> Result<(NamedTempFile, PathBuf), Error> {
        let OutputFile { header, file, target, written, flush } = self;
        let expected: u64 = header.tensors().iter().map(|t| t.size()).sum();
        let layout = |place: &str, expected: u64, found: u64| Error::Layout {
            check: Check::Size,
            place: place.to_owned(),
            expected: format!("{expected} bytes"),
            found: found.to_string(),
        };
        let written = written.into_inner();
        if written != expected {
            return Err(layout("data section", expected, written));
        }
        let bytes = header.encode();
        if bytes.len() as u64 != header.len {
            return Err(layout("header", header.len, bytes.len() as u64));
        }
        positional::write_all_at(file.as_file(), &bytes, 0).map_err(Error::io(&target, "write"))?;
        // The system tells of a failed write once, perhaps to that thread.
        let flushed = flush.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), end_of);
        flushed.and_then(|()| file.as_file().sync_all()).map_err(Error::io(&target, "write"))?;
        Ok((file, target))
    }
}

fn end_of(flush: JoinHandle<io::Result<()>>) -> io::Result<()> {
    flush.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

impl Complete {
    /// A file of bytes that are no GGUF, on its way under the same rules.
    ///
    /// # Errors
    /// Those of [`WriteOptions::check_name`].
    pub fn from_bytes(bytes: &[u8], path: &Path, options: &WriteOptions) -> Result<Self, Error> {
        let len = bytes.len() as u64;
        let target = options.check_name(path, len)?;
        let file = with_room(None, &target, len)?;
        positional::write_all_at(file.as_file(), bytes, 0).map_err(Error::io(&target, "write"))?;
        file.as_file().sync_all().map_err(Error::io(&target, "write"))?;
        let files = Files { overwrite: options.overwrite, path: target.clone(), folder: None };
        Ok(Complete { parts: vec![(file, target)], len, files })
    }

    /// Where it is meanwhile, beside its target; of several files, the first.
    pub fn path(&self) -> &Path {
        self.parts[0].0.path()
    }

    /// Gives the files their names. The first of several comes last: a set without it cannot be
    /// taken for a model.
    ///
    /// # Errors
    /// [`Error::NotRenamed`]; the file is then kept under the name that the error gives, and so are
    /// those not yet renamed. Of a set that was to be replaced, the first file is kept beside them
    /// as `replaced.gguf`.
    pub fn publish(self) -> Result<Finished, Error> {
        let Complete { parts, len, files } = self;
        let (n_files, path) = (parts.len(), parts[0].1.clone());
        if let Some(folder) = &files.folder
            && files.overwrite
            && path.exists()
        {
            // The first shard of an earlier set would be taken for that of a set in which some are
            // new.
            fs::rename(&path, folder.path().join("replaced.gguf")).map_err(Error::io(&path, "move away"))?;
        }
        let mut parts = parts.into_iter().rev();
        while let Some((file, target)) = parts.next() {
            if let Err(e) = rename(file, &target, files.overwrite) {
                // Hours of work may be in them too.
                parts.for_each(|(file, _)| drop(file.keep()));
                files.folder.map(TempDir::keep);
                return Err(e);
            }
        }
        // The rename itself has happened: a folder that cannot be synced is no reason to call the
        // run a failure.
        let _ = positional::sync_folder(folder_of(&path));
        Ok(Finished { path, n_files, len })
    }

    /// Gives the files their names as if `suffix` had been asked for behind the output's own, in
    /// place of whatever has them.
    ///
    /// # Errors
    /// As [`Complete::publish`].
    pub fn publish_with_suffix(mut self, suffix: &str) -> Result<Finished, Error> {
        let mut path = self.files.path.clone();
        path.as_mut_os_string().push(suffix);
        let count = self.parts.len();
        for (no, (_, target)) in self.parts.iter_mut().enumerate() {
            *target = if count == 1 { path.clone() } else { split::shard_of(&path, no + 1, count) };
        }
        self.files.overwrite = true;
        self.publish()
    }
}

/// Gives the file its name; without `overwrite` never in place of another that appeared meanwhile.
fn rename(file: NamedTempFile, target: &Path, overwrite: bool) -> Result<(), Error> {
    let result = if overwrite { file.persist(target) } else { file.persist_noclobber(target) };
    let result = match result {
        // Some file systems can neither rename without replacing nor link (exFAT, some network
        // mounts).
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
