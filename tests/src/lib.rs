//! What the tests share: the sample applications and the lab.

pub mod apps;
pub mod bench;
pub mod demo;
pub mod interrupt;
pub mod lab;
pub mod load;
pub mod out;
pub mod peers;
