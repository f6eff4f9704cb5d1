//! Promises to users.
#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests, not their helpers")]
#![allow(clippy::too_many_lines, reason = "a test is one story, and a list of cases is as long as there are cases")]

// Tensor lists of many architectures, merged by names and shapes; files of other kinds in place of
// a model.
mod architectures;
// The command: exit codes, messages, JSON, places of the output, signals, and what is left behind.
mod cli;
// Two models against each other: KL divergence, perplexity, and their tensors.
mod compare;
// What a small file may cost that claims much: memory and work of every command that opens it.
mod bounds;
// Which files belong together: what headers may differ in, what is refused, what is only said.
mod compat;
// Which engine runs a model, and a process of llama.cpp that does not do its part.
mod engines;
// Talking to a model: through pipes, and in a terminal.
mod chat;
// Judging answers: each check, prompt files, and figures of real models.
mod dialects;
mod eval;
mod folds;
// A model in other types: what is written and refused, and the options that merge has too.
mod quantize;
// The codec against the real ggml's golden vectors, and what it says to wrong lengths and hostile
// values.
mod quants;
// Refusals: a named list of files that each break one rule, limits, and damage at every byte.
mod gguf_malformed;
// Reading and encoding again gives the header's own bytes, whatever legal file it is.
mod gguf_roundtrip;
// A second reader of the same files, and the list of what it is known to read wrong.
mod gguf_rs_differential;
// The output: its bytes, the places it may not take, and what a failure leaves behind.
mod gguf_writer;
// README and guide: their examples, run page by page, their links and lists.
mod guide;
// Importance matrices: files, what is gathered, and what is encoded with one, against llama-imatrix
// and llama-quantize.
mod imatrix;
// Log-probabilities and greedy answers, against llama.cpp.
mod infer;
// Patches of decomposed matrices: what they hold against numpy, their size, and what damage does to
// them.
mod decomposed;
// What a process takes of the system: reads, threads, signals and limits of the shell.
mod process;
// What files and arguments say, on its way to the terminal.
mod terminal;
// Names of languages, and which one a text is in.
mod language;
// No tests: the command in a terminal of tmux.
#[cfg(unix)]
mod tmux;
// Asking, seen while it goes on: answers as they come, phases, and what is left of an interrupted one.
#[cfg(unix)]
mod live;
// LoRA adapters: the rules of llama.cpp, what they hold, what is left out, and what they give back
// to an output.
mod lora;
// Low-rank parts, against the least error there can be.
mod low_rank;
// Tensors that are encoded again after they were measured, in files, shards and patches.
mod meaning;
mod mending;
// What a merge writes, against numpy and ggml: tensors, metadata, provenance, and the weights it
// refuses.
mod merge;
// The type of each tensor for each file type, against llama-quantize.
mod mixtures;
// The order of the crate's modules, read from its sources.
mod module_order;
// Scales beside weights, as in NVFP4 models: sums, outputs, patches, inference.
mod nvfp4;
// Patch files: what they hold, and that applying one is the merge.
mod patch;
// What of a vector reaches the output: nothing at a ratio of 0, and of special tokens what the
// model was not trained on.
mod reach;
// Several vectors, ratios by tensor, mergekit's methods against mergekit, and recipes that
// reproduce a run.
mod recipe;
// Which of the files is the base, which the chat and which the model: wrong orders, and what cannot
// be told.
mod roles;
// Asking a model: broken files by the check meant for each, arguments, outputs that are asked
// before they get their name.
mod smoke;
// Numbers that are not added as they are stored: decays of state spaces, and weights that are
// folded.
mod spaces;
// How much of the vector an output holds: the fixed-point trap, the sums behind it, and the
// forecast.
mod survival;
mod sweep;
// Chat templates as Python renders them, and hostile ones.
mod template;
// What looks wrong in the weights and templates: refused, forced, or said.
mod survey;
// Text to tokens and back, and the end of an answer, against llama.cpp on cut vocabularies; hostile
// vocabularies.
mod tokenizer;
// No tests: the GGUF writer that checks nothing, for everyone else here.
mod support;
mod support_table;
// No tests: trios of models, and the crate run on them as a library and as a process.
mod trio;
// What base and chat have in common, which is in no patch.
mod unmoved;
// The vectors of two patches against each other.
mod vectors;
mod vocabulary;
