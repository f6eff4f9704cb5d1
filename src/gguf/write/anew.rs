//! Laying out an output anew while it is on its way: some tensors have become larger, all others
//! keep their bytes.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use fs4::FileExt;

use super::{Error, Header, OutputFile, Shard, WriteOptions, Writer, positional, split};

/// Bytes that are moved at a time.
const PIECE: u64 = 1 << 20;

impl Writer {
    /// All bytes of a tensor are to be written again.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn forget(&self, tensor: usize) {
        let (part, tensor) = self.places[tensor];
        let part = &self.parts[part];
        part.written.fetch_sub(part.header.tensors()[tensor].size(), Ordering::Relaxed);
    }

    /// Lays the output out under another header. The tensors `open`, in ascending order, may have
    /// finer types there: all of their bytes are to be written again. Every other tensor has been
    /// written and is moved to its place.
    ///
    /// Bytes are moved within the files, in a buffer of 1 MiB. A set of shards of which any begins
    /// at another tensor than before is copied into a second one, which takes its space twice
    /// meanwhile. None if `go_on` says to stop.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; those of [`WriteOptions::check`] where shards begin
    /// elsewhere.
    ///
    /// # Panics
    /// If the header has other tensors, or one is smaller than before.
    pub fn lay_out_anew(
        mut self,
        header: Header,
        open: &[usize],
        (path, options): (&Path, &WriteOptions),
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, Error> {
        let is_open = |tensor: usize| open.binary_search(&tensor).is_ok();
        let shards = split::split(header.clone(), options.split_max_size)?;
        let n_tensors = |part: &OutputFile| part.header.tensors().len();
        let is_alike = self.parts.iter().map(n_tensors).eq(shards.iter().map(|s| s.header.tensors().len()));
        if !is_alike {
            let copy = Writer::create(header, path, options)?;
            return Ok(self.copy_to(&copy, is_open, go_on)?.then_some(copy));
        }
        for (part, Shard { header, first_tensor }) in self.parts.iter_mut().zip(shards) {
            if !part.lay_out_anew(header, |tensor| is_open(first_tensor + tensor), go_on)? {
                return Ok(None);
            }
        }
        Ok(Some(self))
    }

    /// Copies all tensors but those that are open. False if `go_on` says to stop.
    fn copy_to(&self, copy: &Writer, is_open: impl Fn(usize) -> bool, go_on: &dyn Fn() -> bool) -> Result<bool, Error> {
        let mut piece = Vec::new();
        for tensor in (0..self.places.len()).filter(|tensor| !is_open(*tensor)) {
            let (part, at) = self.places[tensor];
            let size = self.parts[part].header.tensors()[at].size();
            for start in (0..size).step_by(PIECE as usize) {
                if !go_on() {
                    return Ok(false);
                }
                piece.resize(PIECE.min(size - start) as usize, 0);
                self.read(tensor, start, &mut piece)?;
                copy.write(tensor, start, &piece)?;
            }
        }
        Ok(true)
    }
}

impl OutputFile {
    fn lay_out_anew(
        &mut self,
        header: Header,
        is_open: impl Fn(usize) -> bool,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool, Error> {
        let old = std::mem::replace(&mut self.header, header);
        let new = &self.header;
        for (before, after) in old.tensors().iter().zip(new.tensors()) {
            assert!(before.name() == after.name() && before.size() <= after.size(), "tensors stay and do not shrink");
        }
        let written: u64 = (0..old.tensors().len()).filter(|t| is_open(*t)).map(|t| old.tensors()[t].size()).sum();
        self.written.fetch_sub(written, Ordering::Relaxed);
        self.take_room()?;
        // No tensor moves further up than those behind it, because none shrinks: what moves down,
        // if the header is shorter, comes first in the file and moves in that order; what moves up
        // moves from the last one on. None meets another on its way.
        let place = |header: &Header, tensor: usize| header.data_offset() + header.tensors()[tensor].offset();
        let kept: Vec<usize> = (0..old.tensors().len()).filter(|t| !is_open(*t)).collect();
        let (down, up): (Vec<usize>, Vec<usize>) = kept.iter().partition(|t| place(new, **t) < place(&old, **t));
        for tensor in down.into_iter().chain(up.into_iter().rev()) {
            let (from, to) = (place(&old, tensor), place(new, tensor));
            if from != to && !self.shift(from, to, new.tensors()[tensor].size(), go_on)? {
                return Ok(false);
            }
        }
        self.clear_padding()?;
        Ok(go_on())
    }

    /// Has the file at least as long as its header says.
    fn take_room(&self) -> Result<(), Error> {
        let (file, len) = (self.file.as_file(), self.header.file_len());
        match file.allocate(len) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                let folder = super::folder_of(self.file.path());
                let available = fs4::available_space(folder).unwrap_or(0);
                return Err(Error::NoSpace { path: self.target.clone(), needed: len, temporary: 0, available });
            }
            Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                return Err(Error::io(&self.target, "take the disk space for it")(e));
            }
            // File systems without preallocation still take the writes.
            Err(_) => {}
        }
        let before = file.metadata().map_err(Error::io(&self.target, "look at"))?.len();
        // What is at its end is still to be moved, if it becomes shorter.
        file.set_len(len.max(before)).map_err(Error::io(&self.target, "set the length of"))
    }

    /// Moves bytes within the file, piece by piece, in the order in which none is written over
    /// before it was read.
    fn shift(&self, from: u64, to: u64, size: u64, go_on: &dyn Fn() -> bool) -> Result<bool, Error> {
        let n_pieces = size.div_ceil(PIECE);
        let mut piece = Vec::new();
        for i in 0..n_pieces {
            if !go_on() {
                return Ok(false);
            }
            let start = PIECE * if to < from { i } else { n_pieces - 1 - i };
            piece.resize(PIECE.min(size - start) as usize, 0);
            let file = self.file.as_file();
            positional::read_exact_at(file, &mut piece, from + start).map_err(Error::io(&self.target, "read back"))?;
            positional::write_all_at(file, &piece, to + start).map_err(Error::io(&self.target, "write"))?;
        }
        Ok(true)
    }

    /// Writes zeros where no tensor lies: what was there before must not show.
    fn clear_padding(&self) -> Result<(), Error> {
        let header = &self.header;
        let data = header.data_offset();
        let mut end = 0;
        let starts = header.tensors().iter().map(|t| (data + t.offset(), t.size()));
        let zeros = vec![0; PIECE as usize];
        for (start, size) in starts.chain([(header.file_len(), 0)]) {
            let mut at = end;
            while at < start {
                let n = (start - at).min(PIECE);
                let bytes = &zeros[..n as usize];
                positional::write_all_at(self.file.as_file(), bytes, at).map_err(Error::io(&self.target, "write"))?;
                at += n;
            }
            end = start + size;
        }
        let file = self.file.as_file();
        file.set_len(header.file_len()).map_err(Error::io(&self.target, "set the length of"))
    }
}
