//! An open loop at a fixed rate, without coordinated omission: requests are due at fixed times whatever became of the ones before,
//! and latency counts from when a request was due. Plain HTTP/1.1, one blocking thread a connection, since an event loop's clock
//! is too coarse.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::client::head_of;
use crate::options::Options;
use crate::{report, wait_for_go};

pub fn rate(options: &Options) -> Result<String, String> {
    let (address, size) = (options.to()?, options.size()?);
    let (path, host) = (options.path(), options.host());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let count = u32::try_from(options.connections()?).map_err(|error| error.to_string())?;
    let between = Duration::from_secs(1) / options.rate()?;
    let a_connection = (options.lasting()?.as_secs_f64() * f64::from(options.rate()?)) as u32 / count;
    let (warm, begin) = (Barrier::new(count as usize + 1), Barrier::new(count as usize + 1));
    let began = Instant::now();
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (request, warm, begin) = (request.as_bytes(), &warm, &begin);
                scope.spawn(move || {
                    wake_exactly();
                    let ready = TcpStream::connect(address).map_err(|error| error.to_string());
                    let ready = ready.and_then(|mut tcp| {
                        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
                        (0..50).try_for_each(|_| ask(&mut tcp, request, size))?;
                        Ok(tcp)
                    });
                    warm.wait();
                    begin.wait();
                    let mut tcp = ready?;
                    let start = Instant::now() + Duration::from_millis(5) + between * number;
                    let mut micros = Vec::with_capacity(a_connection as usize);
                    for turn in 0..a_connection {
                        let due = start + between * count * turn;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        ask(&mut tcp, request, size)?;
                        micros.push(u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX));
                    }
                    Ok(micros)
                })
            })
            .collect();
        warm.wait();
        let go = wait_for_go();
        begin.wait();
        let ended: Result<Vec<Vec<u32>>, String> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
            .collect();
        go.and(ended)
    })?;
    Ok(report(times.concat(), began.elapsed().as_secs_f64()))
}

fn ask(tcp: &mut TcpStream, request: &[u8], size: u64) -> Result<(), String> {
    tcp.write_all(request).map_err(|error| format!("write: {error}"))?;
    let mut buffer = [0; 8192];
    let mut filled = 0;
    loop {
        let count = tcp.read(&mut buffer[filled..]).map_err(|error| format!("read: {error}"))?;
        if count == 0 {
            return Err("the connection ended within an answer".to_owned());
        }
        filled += count;
        if let Some(head) = head_of(&buffer[..filled], size)?
            && (filled - head) as u64 >= size
        {
            return Ok(());
        }
    }
}

/// Sleeps end when they are due, not up to 50 us later.
fn wake_exactly() {
    // SAFETY: sets a number of the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}
