// SPDX-License-Identifier: GPL-2.0

//! The program `ima-trim`.

fn main() {}
