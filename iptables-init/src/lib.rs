//! Traffic redirection rules: model, backends, apply and verify.
