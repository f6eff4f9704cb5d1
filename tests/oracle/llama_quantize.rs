//! llama-quantize in a few lines, around the same function: `cargo build --release -p oracle
//! --example llama_quantize`, then `llama_quantize IN OUT FILE_TYPE_ID THREADS`. llama.cpp is
//! compiled as its releases are: for any x86-64 processor.
#![allow(unsafe_code, clippy::print_stderr)]

use std::ffi::CString;
use std::process::ExitCode;

use llama_cpp_sys_4 as sys;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, file_type, threads] = &args[..] else {
        eprintln!("usage: llama_quantize IN OUT FILE_TYPE_ID THREADS");
        return ExitCode::from(2);
    };
    let (Ok(file_type), Ok(threads)) = (file_type.parse(), threads.parse()) else {
        eprintln!("FILE_TYPE_ID and THREADS are numbers");
        return ExitCode::from(2);
    };
    let path = |path: &str| CString::new(path).expect("an argument holds no NUL");
    let (input, output) = (path(input), path(output));
    // SAFETY: both strings outlive the call, and the parameters name no other memory.
    let status = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = file_type;
        params.nthread = threads;
        params.allow_requantize = true;
        sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), &params)
    };
    if status == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
