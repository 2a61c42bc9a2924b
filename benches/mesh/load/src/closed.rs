//! Closed loops: each connection asks again when it is answered.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use crate::client::{Connection, Target};
use crate::options::Options;
use crate::{report, wait_for_go};

/// Kept connections.
pub async fn keep(options: &Options) -> Result<String, String> {
    let target = Target::new(options, false)?;
    let mut connections = Vec::new();
    for _ in 0..options.connections()? {
        connections.push(target.connect().await?);
    }
    // All at once, so that the proxies' pools are as large as they will have to be.
    let warming = options.warming()?;
    let (connections, _) = run(connections, &target, options.requests()?.map(|_| 1), warming).await?;
    wait_for_go()?;
    let began = Instant::now();
    let (_, micros) = run(connections, &target, options.requests()?, options.lasting()?).await?;
    Ok(report(micros, began.elapsed().as_secs_f64()))
}

async fn run(
    connections: Vec<Connection>,
    target: &Target,
    requests: Option<u64>,
    lasting: std::time::Duration,
) -> Result<(Vec<Connection>, Vec<u32>), String> {
    let until = Instant::now() + lasting;
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let target = target.clone();
        tasks.spawn(async move {
            let mut micros = Vec::new();
            let mut before = Instant::now();
            loop {
                connection.ask(&target).await?;
                let now = Instant::now();
                micros.push(u32::try_from((now - before).as_micros()).unwrap_or(u32::MAX));
                before = now;
                let is_enough = match requests {
                    Some(requests) => micros.len() as u64 >= requests,
                    None => now >= until,
                };
                if is_enough {
                    return Ok::<_, String>((connection, micros));
                }
            }
        });
    }
    let (mut connections, mut all) = (Vec::new(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (connection, micros) = ended.map_err(|error| error.to_string())??;
        connections.push(connection);
        all.extend(micros);
    }
    Ok((connections, all))
}

/// A new connection for each request, which the server ends.
pub async fn fresh(options: &Options) -> Result<String, String> {
    let target = Target::new(options, true)?;
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..options.connections()? {
        let (target, stop) = (target.clone(), stop.clone());
        tasks.spawn(async move {
            let mut micros = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let before = Instant::now();
                let mut connection = target.connect().await?;
                connection.ask(&target).await?;
                micros.push(u32::try_from(before.elapsed().as_micros()).unwrap_or(u32::MAX));
                connection.until_closed().await;
            }
            Ok::<_, String>(micros)
        });
    }
    tokio::time::sleep(options.lasting()?).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended.map_err(|error| error.to_string())??);
    }
    Ok(report(all, began.elapsed().as_secs_f64()))
}

/// Holds connections, each after one request, until standard input ends.
pub async fn idle(options: &Options) -> Result<String, String> {
    let target = Target::new(options, false)?;
    let count = options.connections()?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = target.connect().await?;
        connection.ask(&target).await?;
        connection.rest();
        held.push(connection);
    }
    println!("ready");
    let _ = std::io::stdout().flush();
    let mut rest = Vec::new();
    let _ = tokio::io::stdin().read_to_end(&mut rest).await;
    // None may have been closed meanwhile: a proxy that drops idle connections would look lean.
    let alive = held.len();
    for connection in &mut held {
        connection.ask(&target).await.map_err(|error| format!("a held connection is gone: {error}"))?;
    }
    Ok(format!("{{\"held\": {alive}}}"))
}
