//! What is asked of ggml and llama.cpp, as functions of slices and paths.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;
use std::ptr;
use std::sync::Once;

use chatvec::ggml::GgmlType;
use llama_cpp_sys_4 as sys;

/// `ggml_quantize_chunk` of rows of `row_len` weights.
pub(crate) fn quantize(ty: GgmlType, weights: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    assert!(weights.len().is_multiple_of(row_len) && row_len.is_multiple_of(ty.block_len()));
    assert!(importance.is_none_or(|importance| importance.len() == row_len));
    let size = weights.len() / ty.block_len() * ty.block_size();
    let mut blocks = vec![0; size];
    let importance = importance.map_or(ptr::null(), <[f32]>::as_ptr);
    // SAFETY: `weights` holds whole rows of whole blocks, `blocks` their size, `importance` a row,
    // or is null. ggml builds its tables under a lock.
    let written = unsafe {
        let n_rows = weights.len() / row_len;
        let dst = blocks.as_mut_ptr().cast();
        sys::ggml_quantize_chunk(ty.id(), weights.as_ptr(), dst, 0, n_rows as i64, row_len as i64, importance)
    };
    assert_eq!(written, size, "{ty}");
    blocks
}

/// `to_float` of the type.
pub(crate) fn dequantize(ty: GgmlType, blocks: &[u8]) -> Vec<f32> {
    let n_weights = blocks.len() / ty.block_size() * ty.block_len();
    let mut weights = vec![0.0; n_weights];
    // SAFETY: the table has an entry for every id, and lives as long as the program; `weights`
    // holds what `blocks` decode to.
    unsafe {
        let to_float = (*sys::ggml_get_type_traits(ty.id())).to_float.expect("a type that can be read");
        to_float(blocks.as_ptr().cast(), weights.as_mut_ptr(), n_weights as i64);
    }
    weights
}

/// An importance for each tensor of some names: rows of every slice, one after the other.
pub(crate) type Matrix = Vec<(String, Vec<f32>)>;

/// What `llama_model_quantize` is asked for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Quantize<'a> {
    /// `enum llama_ftype`.
    pub(crate) file_type: u32,
    pub(crate) pure: bool,
    pub(crate) allow_requantize: bool,
    /// Of each tensor.
    pub(crate) importance: Option<&'a Matrix>,
}

/// `llama_model_quantize`; its messages are dropped.
pub(crate) fn quantize_model(input: &Path, output: &Path, options: &Quantize<'_>) -> Result<(), u32> {
    static SILENCE: Once = Once::new();
    // SAFETY: a callback that does nothing may be called from anywhere.
    SILENCE.call_once(|| unsafe { sys::llama_log_set(Some(drop_message), ptr::null_mut()) });
    let path = |path: &Path| CString::new(path.to_str().expect("a path of the test's")).expect("no NUL");
    let (input, output) = (path(input), path(output));
    let entries = options.importance.into_iter().flatten();
    let names: Vec<CString> = entries.clone().map(|(name, _)| CString::new(name.as_str()).expect("no NUL")).collect();
    let entries = entries.zip(&names);
    let mut matrix: Vec<sys::llama_model_imatrix_data> = entries
        .map(|((_, values), name)| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: values.as_ptr(),
            size: values.len(),
        })
        .collect();
    matrix.push(sys::llama_model_imatrix_data { name: ptr::null(), data: ptr::null(), size: 0 });
    // SAFETY: the strings and the matrix, which ends with a null name, outlive the call.
    let status = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.nthread = 2;
        params.ftype = options.file_type as sys::llama_ftype;
        params.pure_ = options.pure;
        params.allow_requantize = options.allow_requantize;
        params.imatrix = if options.importance.is_some() { matrix.as_ptr() } else { ptr::null() };
        sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), &params)
    };
    if status == 0 { Ok(()) } else { Err(status) }
}

unsafe extern "C" fn drop_message(
    _level: sys::ggml_log_level,
    _text: *const std::os::raw::c_char,
    _user_data: *mut std::os::raw::c_void,
) {
}
