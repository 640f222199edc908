//! Encoders and decoders of the GGML block types.
