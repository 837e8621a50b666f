//! Why a decision came out as it did, for `why`, `analyze` and the logs.
