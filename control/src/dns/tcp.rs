//! Connections: one thread each, questions answered in the order they come. A connection that is silent for too long ends,
//! and when there are too many the oldest makes room, so that nobody keeps others out by holding connections open.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::server::{PAUSE, STACK, Shared};
use super::upstream::{framed, now, read_exact_until};

/// How long a client may take to its next question, whole (RFC 7766 §6.2.3: a few seconds).
const SILENCE: Duration = Duration::from_secs(10);

/// Connections there are, by their order.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
    most: usize,
    crowded_out: AtomicU64,
}

impl Connections {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            open: Mutex::new(BTreeMap::new()),
            most,
            crowded_out: AtomicU64::new(0),
        }
    }

    pub(super) fn crowded_out(&self) -> u64 {
        self.crowded_out.load(Ordering::Relaxed)
    }

    /// How many there are, of how many.
    pub(super) fn used(&self) -> (u64, u64) {
        (self.lock().len() as u64, self.most as u64)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<TcpStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, number: u64, stream: &Arc<TcpStream>) {
        let mut open = self.lock();
        while open.len() >= self.most
            && let Some((_, oldest)) = open.pop_first()
        {
            self.crowded_out.fetch_add(1, Ordering::Relaxed);
            // Its thread wakes and ends.
            let _closed = oldest.shutdown(Shutdown::Both);
        }
        open.insert(number, stream.clone());
    }
}

/// Takes connections for as long as the process lives.
pub(super) fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for number in 0.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => Arc::new(stream),
            Err(error) => {
                log::debug!("dns: cannot accept a connection: {error}");
                thread::sleep(PAUSE);
                continue;
            }
        };
        shared.connections.add(number, &stream);
        let serving = shared.clone();
        let thread = thread::Builder::new().name("dns-stream".into()).stack_size(STACK);
        let started = thread.spawn(move || {
            // Who leaves in the middle is served no more.
            let _gone = serve(&serving, &stream);
            serving.connections.lock().remove(&number);
        });
        if let Err(error) = started {
            log::warn!("dns: cannot start a thread: {error}");
            shared.connections.lock().remove(&number);
        }
    }
}

fn serve(shared: &Shared, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut reader = stream.try_clone()?;
    let mut answer = Vec::new();
    loop {
        let deadline = now() + SILENCE;
        let mut length = [0; 2];
        read_exact_until(&mut reader, &mut length, deadline)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        read_exact_until(&mut reader, &mut question, deadline)?;
        if !shared.answer_stream(&question, &mut answer) {
            return Ok(());
        }
        (&*stream).write_all(&framed(&answer)?)?;
    }
}
