//! Placeholder: declared early so that every part compiles against one module tree.
