//! Body filters: they see a response's body chunk by chunk and only where a plugin asked for it.

use bytes::Bytes;

use super::Fault;

/// Changes a body on its way. One object a response.
pub trait BodyFilter: Send {
    /// Takes the next piece and gives what goes on in its place; empty to hold it back.
    ///
    /// # Errors
    /// The body cannot be served; the response is cut off.
    fn chunk(&mut self, data: Bytes) -> Result<Bytes, Fault>;

    /// The body is over; gives what is still to be sent.
    ///
    /// # Errors
    /// The body cannot be served; the response is cut off.
    fn finish(&mut self) -> Result<Bytes, Fault>;
}

/// The filters of one response, in running order.
#[derive(Default)]
pub struct BodyFilters(Vec<Box<dyn BodyFilter>>);

impl BodyFilters {
    /// Nothing to do: the body passes untouched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a filter behind the others.
    pub fn add(&mut self, filter: Box<dyn BodyFilter>) {
        self.0.push(filter);
    }

    /// One piece through all filters.
    ///
    /// # Errors
    /// What a filter says.
    pub fn chunk(&mut self, mut data: Bytes) -> Result<Bytes, Fault> {
        for filter in &mut self.0 {
            if data.is_empty() {
                break;
            }
            data = filter.chunk(data)?;
        }
        Ok(data)
    }

    /// The end through all filters: what one still holds passes those behind it.
    ///
    /// # Errors
    /// What a filter says.
    pub fn finish(&mut self) -> Result<Bytes, Fault> {
        let mut held = Bytes::new();
        for filter in &mut self.0 {
            let passed = if held.is_empty() { held } else { filter.chunk(held)? };
            let rest = filter.finish()?;
            held = match (passed.is_empty(), rest.is_empty()) {
                (_, true) => passed,
                (true, false) => rest,
                (false, false) => [passed, rest].concat().into(),
            };
        }
        Ok(held)
    }
}

impl std::fmt::Debug for BodyFilters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyFilters({})", self.0.len())
    }
}
