//! The plugins, a file each, in families. To add one: its file, a `mod` line and a row in its family's table.

use crate::pipeline::Entry;

mod auth;
mod bounds;
mod guard;
mod limit;
mod trace;
mod traffic;
mod transform;

const FAMILIES: [&[Entry]; 6] =
    [auth::ROWS, guard::ROWS, limit::ROWS, trace::ROWS, traffic::ROWS, transform::ROWS];

const COUNT: usize = {
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        count += FAMILIES[family].len();
        family += 1;
    }
    count
};

const TABLE: [Entry; COUNT] = {
    let mut table = [FAMILIES[0][0]; COUNT];
    let (mut at, mut family) = (0, 0);
    while family < FAMILIES.len() {
        let mut row = 0;
        while row < FAMILIES[family].len() {
            table[at] = FAMILIES[family][row];
            (at, row) = (at + 1, row + 1);
        }
        family += 1;
    }
    table
};

/// Every plugin: name, priority, schemas, and how to compile its settings.
pub static ALL: &[Entry] = &TABLE;

#[cfg(test)]
mod tests;
