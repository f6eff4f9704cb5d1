#!/bin/sh
# The checks before a release that need large files or the network: inference held to llama.cpp on models that
# users run, and its speed beside llama.cpp's. Plain `cargo test` needs none of this.
#
#     tests/peers/pre_release.sh
#
# PYTHON names an interpreter with requirements.txt (default target/peers-venv/bin/python),
# CHATVEC_PEER_MODELS a folder of the models (default target/peer-models), CHATVEC_PEER_OFFLINE=1 forbids fetching.
# Ends with another code than 0 when the models cannot be had: a check that was not done is not passed.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-target/peers-venv/bin/python}
CHATVEC_PEER_MODELS=${CHATVEC_PEER_MODELS:-$PWD/target/peer-models}
export CHATVEC_PEER_MODELS

command -v "$python" >/dev/null || {
    echo "error: no $python: make it as tests/peers/README.md says, or set PYTHON" >&2
    exit 1
}
if [ "${CHATVEC_PEER_OFFLINE:-0}" = 1 ]; then
    for model in SmolLM2-135M-Instruct-Q4_1 Qwen2.5-Coder-0.5B-Instruct-Q4_K_M gemma-3-270m-q4_k_m; do
        [ -f "$CHATVEC_PEER_MODELS/$model.gguf" ] || {
            echo "error: no $CHATVEC_PEER_MODELS/$model.gguf, and CHATVEC_PEER_OFFLINE=1 forbids fetching it" >&2
            exit 1
        }
    done
fi

# Leaves files alone that are there, after comparing their hashes.
"$python" tests/peers/fetch_models.py "$CHATVEC_PEER_MODELS"
cargo build --release
cargo test --release --test integration -- --include-ignored infer:: smoke::figures_
"$python" tests/peers/decode_speed.py --models "$CHATVEC_PEER_MODELS"
