//! What the configuration wants of a pod, in every constellation of what is known.
