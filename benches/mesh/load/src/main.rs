//! The load of `benches/mesh`: one thread, one line of JSON at the end, and any wrong answer ends it with exit code 1.
//!
//! ```text
//! mesh-load keep  --to ADDRESS ... --seconds 3     kept connections, as many requests as go (closed loop)
//! mesh-load fresh --to ADDRESS ... --seconds 3     a new connection for each request
//! mesh-load rate  --to ADDRESS ... --rate 1000     an open loop: latency counts from when a request was due
//! mesh-load idle  --to ADDRESS ... --connections N one request each, then held until standard input ends
//! mesh-load grpc  --listen ADDRESS --size N        the application of gRPC: answers any call with N bytes
//! mesh-load relay --listen ADDRESS --to ADDRESS    a TCP relay: the floor
//! ```
//!
//! `keep`, `rate` and `idle` print `ready` when all connections stand and are warm; the first two then wait for a line on
//! standard input, so that whoever counts CPU can begin exactly there.

mod client;
mod closed;
mod open;
mod options;
mod servers;

use options::Options;

fn main() {
    let options = Options::from_arguments().unwrap_or_else(|error| fail(&error));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| fail(&error.to_string()));
    let outcome = match options.verb.as_str() {
        "keep" => runtime.block_on(closed::keep(&options)),
        "fresh" => runtime.block_on(closed::fresh(&options)),
        "idle" => runtime.block_on(closed::idle(&options)),
        "rate" => open::rate(&options),
        "grpc" => runtime.block_on(servers::grpc(&options)),
        "relay" => runtime.block_on(servers::relay(&options)),
        other => Err(format!("no such verb: {other}")),
    };
    match outcome {
        Ok(report) => println!("{report}"),
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ! {
    eprintln!("mesh-load: {error}");
    std::process::exit(1);
}

/// What was seen, as JSON.
fn report(mut micros: Vec<u32>, seconds: f64) -> String {
    micros.sort_unstable();
    let at = |part: f64| {
        let last = micros.len().saturating_sub(1);
        micros.get((last as f64 * part) as usize).copied().unwrap_or(0)
    };
    format!(
        "{{\"requests\": {}, \"seconds\": {seconds:.6}, \"p50_us\": {}, \"p90_us\": {}, \"p99_us\": {}, \"max_us\": {}}}",
        micros.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    )
}

/// Says that everything stands, and waits until whoever measures wants it to begin.
fn wait_for_go() -> Result<(), String> {
    println!("ready");
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(count) if count > 0 => Ok(()),
        _ => Err("standard input ended before the start".to_owned()),
    }
}
