//! Fetching and keeping over real sockets.
