//! The other end: the process in which llama.cpp runs.
//!
//! Whatever llama.cpp does not survive ends this process, and no other.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::io::{self, Read, Write};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_4 as sys;

use super::protocol::{Answer, Opened, Opening, Portion, Request};
use super::{BATCH, OUTPUTS};

/// Answers requests until there are no more.
pub(super) fn serve(requests: &mut dyn Read, answers: &mut dyn Write) -> io::Result<()> {
    // SAFETY: the callback may be called from any thread and keeps nothing.
    unsafe {
        sys::llama_log_set(Some(log), ptr::null_mut());
        sys::llama_backend_init();
    }
    let mut loaded = None;
    while let Some(request) = Request::read(requests)? {
        let answer = answer(&mut loaded, &request, answers);
        answer.unwrap_or_else(|e| Answer::Refused(e.0)).write(answers)?;
    }
    Ok(())
}

/// Why llama.cpp does not do something: what follows "llama.cpp" in a sentence.
struct Refusal(String);

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Refusal(format!("is asked by a pipe that fails: {e}"))
    }
}

fn refusal<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(what.into()))
}

fn answer(loaded: &mut Option<Loaded>, request: &Request, answers: &mut dyn Write) -> Result<Answer, Refusal> {
    if let Request::Open(opening) = request {
        // The one before goes away first.
        drop(loaded.take());
        let model = Loaded::open(opening)?;
        let opened = model.opened();
        *loaded = Some(model);
        return Ok(Answer::Opened(opened));
    }
    let Some(model) = loaded else { return refusal("has no model yet") };
    if let Request::Context { n_sequences, room } = request {
        model.begin(*n_sequences, *room)?;
        return Ok(Answer::Done);
    }
    let (n_vocab, Some(context)) = (model.n_vocab(), &mut model.context) else { return refusal("has no context yet") };
    match request {
        Request::Truncate { sequence, n } => context.truncate(*sequence, *n)?,
        Request::Share { from, to, n } => context.share(*from, *to, *n)?,
        Request::Feed(portions) => context.feed(portions, n_vocab, answers)?,
        Request::Open(_) | Request::Context { .. } => {}
    }
    Ok(Answer::Done)
}

/// Writes warnings and errors to standard error, which the one that asked keeps the last lines of.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    /// Whether the line that goes on is one of those.
    static IS_SHOWN: AtomicBool = AtomicBool::new(false);
    let is_shown = match level {
        sys::GGML_LOG_LEVEL_CONT => IS_SHOWN.load(Ordering::Relaxed),
        level => level == sys::GGML_LOG_LEVEL_WARN || level == sys::GGML_LOG_LEVEL_ERROR,
    };
    IS_SHOWN.store(is_shown, Ordering::Relaxed);
    if is_shown && !text.is_null() {
        // SAFETY: llama.cpp gives a string that lives as long as the call.
        let _ = io::stderr().write_all(unsafe { CStr::from_ptr(text) }.to_bytes());
    }
}

/// A model, which goes away after all that is made of it.
struct Loaded {
    context: Option<Context>,
    /// Adapters with their factors; the model frees them.
    loras: Vec<(NonNull<sys::llama_adapter_lora>, f32)>,
    model: NonNull<sys::llama_model>,
    threads: i32,
}

impl Loaded {
    fn open(opening: &Opening) -> Result<Self, Refusal> {
        let path = c_path(&opening.path)?;
        // SAFETY: the parameters name no memory of ours, and the path outlives the call.
        let model = unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            params.load_mode = match opening.is_header_only {
                true => sys::LLAMA_LOAD_MODE_NONE,
                false => sys::LLAMA_LOAD_MODE_MMAP,
            };
            params.no_alloc = opening.is_header_only;
            // Weights stay as they are in the file: pages of the system's cache.
            params.use_extra_bufts = false;
            sys::llama_model_load_from_file(path.as_ptr(), params)
        };
        let Some(model) = NonNull::new(model) else { return refusal("does not load the file") };
        let threads = i32::try_from(opening.threads).unwrap_or(i32::MAX).clamp(1, 1024);
        let mut loaded = Loaded { context: None, loras: Vec::new(), model, threads };
        loaded.require_text()?;
        for (lora, factor) in opening.loras.iter().filter(|_| !opening.is_header_only) {
            let path = c_path(lora)?;
            // SAFETY: the model is alive, and the path outlives the call.
            let adapter = unsafe { sys::llama_adapter_lora_init(model.as_ptr(), path.as_ptr()) };
            let Some(adapter) = NonNull::new(adapter) else {
                return refusal(format!("does not load the adapter {}", lora.display()));
            };
            loaded.loras.push((adapter, *factor));
        }
        Ok(loaded)
    }

    /// Refuses models that do not go on with a text token by token.
    fn require_text(&self) -> Result<(), Refusal> {
        let model = self.model.as_ptr();
        // SAFETY: the model is alive.
        let (is_other, n_vocab) = unsafe {
            let is_other = sys::llama_model_has_encoder(model)
                || !sys::llama_model_has_decoder(model)
                || sys::llama_model_is_diffusion(model);
            (is_other, sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model)))
        };
        if is_other {
            return refusal("does not write text with this model token by token");
        }
        if n_vocab < 1 { refusal("finds no vocabulary in the file") } else { Ok(()) }
    }

    fn n_vocab(&self) -> usize {
        // SAFETY: the model is alive.
        let n = unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.model.as_ptr())) };
        usize::try_from(n).unwrap_or(0)
    }

    fn opened(&self) -> Opened {
        // SAFETY: the model is alive; the version is a string of the program.
        let (n_ctx_train, version) =
            unsafe { (sys::llama_model_n_ctx_train(self.model.as_ptr()), CStr::from_ptr(sys::llama_version())) };
        Opened {
            n_vocab: self.n_vocab() as u32,
            n_ctx_train: u32::try_from(n_ctx_train).unwrap_or(0),
            version: version.to_string_lossy().into_owned(),
        }
    }

    /// Takes a new context in the place of the one before.
    fn begin(&mut self, n_sequences: u32, room: u32) -> Result<(), Refusal> {
        self.context = None;
        let n = n_sequences as usize;
        // SAFETY: the parameters name no memory of ours; the model outlives the context
        // (`Loaded::drop`), as do its adapters, whose list outlives the call that takes it.
        unsafe {
            let mut params = sys::llama_context_default_params();
            let n_ctx = n_sequences.checked_mul(room.next_multiple_of(256));
            let Some(n_ctx) = n_ctx else { return refusal("has no context of so many tokens") };
            params.n_ctx = n_ctx;
            params.n_seq_max = n_sequences;
            params.n_batch = BATCH.max(n) as u32;
            params.n_ubatch = params.n_batch;
            params.n_outputs_max = OUTPUTS.max(n) as u32;
            params.n_threads = self.threads;
            params.n_threads_batch = self.threads;
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.attention_type = sys::LLAMA_ATTENTION_TYPE_CAUSAL;
            params.type_k = sys::GGML_TYPE_F32;
            params.type_v = sys::GGML_TYPE_F32;
            params.offload_kqv = false;
            params.op_offload = false;
            params.no_perf = true;
            // Tokens that a window has left behind are there again after a truncation.
            params.swa_full = true;
            // A sequence has a part of the cache for itself.
            params.kv_unified = false;
            let context = sys::llama_init_from_model(self.model.as_ptr(), params);
            let Some(raw) = NonNull::new(context) else { return refusal("does not make a context") };
            let context = Context { raw, tokens: vec![Vec::new(); n], room: room as usize };
            let (mut loras, mut factors): (Vec<_>, Vec<f32>) =
                self.loras.iter().map(|(lora, factor)| (lora.as_ptr(), *factor)).unzip();
            let set = sys::llama_set_adapters_lora(raw.as_ptr(), loras.as_mut_ptr(), loras.len(), factors.as_mut_ptr());
            self.context = Some(context);
            if set == 0 { Ok(()) } else { refusal("does not take the adapters") }
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.context = None;
        // SAFETY: nothing that is made of the model is left; it frees its adapters.
        unsafe { sys::llama_model_free(self.model.as_ptr()) };
    }
}

/// Sequences of tokens.
struct Context {
    raw: NonNull<sys::llama_context>,
    /// Those of each.
    tokens: Vec<Vec<u32>>,
    room: usize,
}

/// A token of a batch: which of what is fed, and which of its tokens.
struct Source {
    portion: usize,
    index: usize,
}

impl Context {
    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is alive.
        unsafe { sys::llama_get_memory(self.raw.as_ptr()) }
    }

    fn truncate(&mut self, sequence: u32, n: u32) -> Result<(), Refusal> {
        let (id, n) = (self.id(sequence)?, n as usize);
        if n >= self.tokens[sequence as usize].len() {
            return Ok(());
        }
        let mut kept = self.tokens[sequence as usize].clone();
        kept.truncate(n);
        // SAFETY: the memory is that of the context, which is alive.
        let is_removed = unsafe { sys::llama_memory_seq_rm(self.memory(), id, n as i32, -1) };
        self.tokens[sequence as usize].truncate(n);
        if is_removed { Ok(()) } else { self.again(sequence, kept) }
    }

    fn share(&mut self, from: u32, to: u32, n: u32) -> Result<(), Refusal> {
        let (source, target) = (self.id(from)?, self.id(to)?);
        let mut tokens = self.tokens[from as usize].clone();
        if source == target || n as usize > tokens.len() {
            return refusal("is asked to share tokens that are not there");
        }
        tokens.truncate(n as usize);
        // SAFETY: the memory is that of the context, which is alive, and has both sequences. Between
        // parts of a cache only all of a sequence can be copied.
        unsafe {
            sys::llama_memory_seq_rm(self.memory(), target, -1, -1);
            sys::llama_memory_seq_cp(self.memory(), source, target, -1, -1);
        }
        self.tokens[to as usize] = self.tokens[from as usize].clone();
        self.truncate(to, n)
    }

    /// Feeds a sequence from its beginning: a state that has no past cannot go back in it.
    fn again(&mut self, sequence: u32, tokens: Vec<u32>) -> Result<(), Refusal> {
        // SAFETY: the memory is that of the context, which is alive. All of a sequence can be
        // removed in every kind of memory.
        unsafe { sys::llama_memory_seq_rm(self.memory(), self.id(sequence)?, -1, -1) };
        self.tokens[sequence as usize].clear();
        let portion = Portion { sequence, first: tokens.len() as u32, tokens };
        self.feed(&[portion], 0, &mut io::sink())
    }

    /// A sequence as llama.cpp numbers them.
    fn id(&self, sequence: u32) -> Result<i32, Refusal> {
        match i32::try_from(sequence) {
            Ok(id) if (sequence as usize) < self.tokens.len() => Ok(id),
            _ => refusal(format!("has no sequence {sequence}")),
        }
    }

    /// Feeds tokens, and writes the rows that are asked for.
    fn feed(&mut self, portions: &[Portion], n_vocab: usize, answers: &mut dyn Write) -> Result<(), Refusal> {
        for portion in portions {
            self.id(portion.sequence)?;
            if self.tokens[portion.sequence as usize].len() + portion.tokens.len() > self.room {
                return refusal(format!("has no room for {} tokens", portion.tokens.len()));
            }
        }
        let tokens = |(i, p): (usize, &Portion)| (0..p.tokens.len()).map(move |index| Source { portion: i, index });
        let sources: Vec<Source> = portions.iter().enumerate().flat_map(tokens).collect();
        let is_wanted = |s: &Source| s.index >= portions[s.portion].first as usize;
        let (n_batch, n_outputs) = (BATCH.max(self.tokens.len()), OUTPUTS.max(self.tokens.len()));
        let mut rest = &sources[..];
        while !rest.is_empty() {
            let mut n_wanted = 0;
            let n = rest.iter().take(n_batch).take_while(|s| {
                n_wanted += usize::from(is_wanted(s));
                n_wanted <= n_outputs
            });
            let (batch, others) = rest.split_at(n.count());
            self.decode(portions, batch, &is_wanted)?;
            for (i, source) in batch.iter().enumerate().filter(|(_, source)| is_wanted(source)) {
                let (portion, index) = (source.portion as u32, source.index as u32);
                Answer::Row { portion, index, logits: self.logits(i, n_vocab)? }.write(answers)?;
            }
            rest = others;
        }
        Ok(())
    }

    /// Takes a batch through the network.
    fn decode(
        &mut self,
        portions: &[Portion],
        batch: &[Source],
        is_wanted: &dyn Fn(&Source) -> bool,
    ) -> Result<(), Refusal> {
        let mut tokens: Vec<i32> = Vec::with_capacity(batch.len());
        let (mut places, mut ids) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for source in batch {
            let portion = &portions[source.portion];
            let (sequence, token) = (portion.sequence as usize, portion.tokens[source.index]);
            tokens.push(token as i32);
            places.push(self.tokens[sequence].len() as i32);
            ids.push(portion.sequence as i32);
            self.tokens[sequence].push(token);
        }
        let mut numbers = vec![1; batch.len()];
        let mut lists: Vec<*mut i32> = ids.iter_mut().map(ptr::from_mut).collect();
        let mut are_wanted: Vec<i8> = batch.iter().map(|source| is_wanted(source).into()).collect();
        // SAFETY: each list has an entry a token, and outlives the call; the context is alive.
        let status = unsafe {
            let batch = sys::llama_batch {
                n_tokens: tokens.len() as i32,
                token: tokens.as_mut_ptr(),
                embd: ptr::null_mut(),
                pos: places.as_mut_ptr(),
                n_seq_id: numbers.as_mut_ptr(),
                seq_id: lists.as_mut_ptr(),
                logits: are_wanted.as_mut_ptr(),
            };
            sys::llama_decode(self.raw.as_ptr(), batch)
        };
        if status == 0 { Ok(()) } else { refusal(format!("does not compute {} tokens (status {status})", batch.len())) }
    }

    /// The logits after a token of the last batch.
    fn logits(&self, i: usize, n_vocab: usize) -> Result<Vec<f32>, Refusal> {
        // SAFETY: the context is alive, and has a row of the length of the vocabulary for each token
        // of the last batch of which it was wanted, or says that it has none.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw.as_ptr(), i as i32);
            if row.is_null() {
                return refusal(format!("gives no logits for token {i} of a batch"));
            }
            Ok(std::slice::from_raw_parts(row, n_vocab).to_vec())
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}

fn c_path(path: &Path) -> Result<CString, Refusal> {
    #[cfg(unix)]
    let bytes = path.as_os_str().as_encoded_bytes().to_vec();
    // On Windows paths are UTF-8 to llama.cpp.
    #[cfg(not(unix))]
    let bytes = path.to_string_lossy().into_owned().into_bytes();
    CString::new(bytes).or_else(|_| refusal("takes no path with a NUL"))
}
