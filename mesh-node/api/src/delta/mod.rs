//! Delta xDS as two state machines without I/O.
