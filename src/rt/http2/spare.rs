//! What connections write into, while they have nothing to say: a thread keeps some of it for those that have.

use std::cell::RefCell;

/// So many buffers a thread keeps.
const MOST: usize = 64;
/// Bytes of the largest one that is kept.
const LARGEST: usize = 64 * 1024;

thread_local! {
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Gives `output` memory if it has none.
pub(super) fn lend(output: &mut Vec<u8>) {
    if output.capacity() == 0 {
        *output = OUTPUTS.with_borrow_mut(Vec::pop).unwrap_or_default();
    }
}

/// Takes the memory of an output back. Nothing may be in it.
pub(super) fn give_back(output: &mut Vec<u8>) {
    let output = std::mem::take(output);
    if (1..=LARGEST).contains(&output.capacity()) {
        OUTPUTS.with_borrow_mut(|spare| {
            if spare.len() < MOST {
                spare.push(output);
            }
        });
    }
}
