//! The bare transport: the same bytes over the same QUIC, and nothing else. Two processes, made of the benchmark's own
//! binary started with a role as its first word.
//!
//! ```text
//!   Raw ── starts ──▶ raw-server   ── address ──▶ Raw
//!    │                    ▲  reads and discards; closes with 0 when it has all
//!    └───── starts ──▶ raw-client  chunks of 1 MiB, in turn on each stream; ends when it hears that close
//!   each tells what it measured, one JSON object a line, on stdout
//! ```
//!
//! Always true: a role reads a node's own node.toml and takes identity, socket buffers and packet size from there,
//! transport settings from where a node has them, and a runtime like a node's; every process carries the mark.
//! What it sends is one chunk over and over: it stays in the cache, so this is the least that the bytes can cost.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit::lab::sweeper::MARK_VARIABLE;
use godwit_domain::NodeName;
use godwit_node::config::NodeConfig;
use godwit_node::identity::Identity;
use godwit_transfer::transport;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ConnectionError, Endpoint, RecvStream, ServerConfig, TokioRuntime};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

use super::{Failure, Sample, say};

/// First word of a process that receives.
pub(crate) const SERVER: &str = "raw-server";
/// First word of a process that sends.
pub(crate) const CLIENT: &str = "raw-client";
/// What is handed to a stream at once: a batch of pages has as much.
const CHUNK_BYTES: usize = 1 << 20;
/// As many as serve the connections of a node.
const WORKER_THREADS: usize = 2;
/// The code of a close that says: all of it is here.
const ALL_HERE: u32 = 0;

/// What is transferred, and between whom.
pub(crate) struct Raw<'a> {
    /// The config of the receiving and of the sending node.
    pub(crate) configs: [PathBuf; 2],
    pub(crate) bytes: u64,
    pub(crate) streams: usize,
    pub(crate) mark: &'a str,
}

/// What a process measured of itself.
#[derive(Serialize, Deserialize)]
struct Measured {
    /// From the first byte to the end; the sender's counts.
    took: Duration,
    cpu: Duration,
}

impl Raw<'_> {
    /// One transfer.
    pub(crate) async fn run(&self) -> Result<Sample, Failure> {
        let (mut server, mut heard) = self.start(SERVER, &self.configs[0], &[])?;
        let address = line(&mut heard).await?;
        let peer = NodeConfig::load(&self.configs[0])?.name;
        let (mut client, mut told) = self.start(CLIENT, &self.configs[1], &[&address, peer.as_str()])?;
        let sent: Measured = serde_json::from_str(&line(&mut told).await?)?;
        let received: Measured = serde_json::from_str(&line(&mut heard).await?)?;
        client.wait().await?;
        server.wait().await?;
        Ok(Sample::of(self.bytes, sent.took, sent.cpu + received.cpu))
    }

    fn start(
        &self,
        role: &str,
        config: &Path,
        rest: &[&str],
    ) -> Result<(Child, Lines<BufReader<ChildStdout>>), Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(config).arg(self.bytes.to_string()).arg(self.streams.to_string()).args(rest);
        command.env(MARK_VARIABLE, self.mark).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("no pipe")?;
        Ok((child, BufReader::new(stdout).lines()))
    }
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String, Failure> {
    Ok(lines.next_line().await?.ok_or("a raw process ended before it was done")?)
}

/// The receiving process.
pub(crate) fn serve(words: &[String]) -> Result<(), Failure> {
    let [config, bytes, streams] = words else { return Err("CONFIG BYTES STREAMS".into()) };
    let config = NodeConfig::load(Path::new(config))?;
    let (bytes, streams) = (bytes.parse()?, streams.parse()?);
    as_a_node_would(receive(config, bytes, streams))
}

/// The sending process.
pub(crate) fn send(words: &[String]) -> Result<(), Failure> {
    let [config, bytes, streams, address, peer] = words else {
        return Err("CONFIG BYTES STREAMS ADDRESS PEER".into());
    };
    let config = NodeConfig::load(Path::new(config))?;
    let (bytes, streams) = (bytes.parse()?, streams.parse()?);
    as_a_node_would(transmit(config, bytes, streams, address.parse()?, peer.parse()?))
}

/// On the worker threads, as a migration is, with the main thread beside them.
fn as_a_node_would(work: impl Future<Output = Result<(), Failure>> + Send + 'static) -> Result<(), Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKER_THREADS).enable_all().build()?;
    runtime.block_on(async { tokio::spawn(work).await? })
}

async fn receive(config: NodeConfig, bytes: u64, streams: usize) -> Result<(), Failure> {
    let endpoint = endpoint(&config)?;
    say(&endpoint.local_addr()?.to_string())?;
    let cpu = cpu_time();
    let connection = endpoint.accept().await.ok_or("the endpoint has closed")?.await?;
    let begun = Instant::now();
    let mut readers = JoinSet::new();
    for _ in 0..streams {
        readers.spawn(discard(connection.accept_uni().await?));
    }
    let mut received = 0;
    while let Some(read) = readers.join_next().await {
        received += read??;
    }
    if received != bytes {
        return Err(format!("{received} bytes came of {bytes}").into());
    }
    connection.close(ALL_HERE.into(), b"all of it is here");
    let took = begun.elapsed();
    endpoint.wait_idle().await;
    report(&Measured { took, cpu: cpu_time().saturating_sub(cpu) })
}

async fn discard(mut stream: RecvStream) -> Result<u64, Failure> {
    let mut read = 0;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
        read += chunk.bytes.len() as u64;
    }
    Ok(read)
}

async fn transmit(
    config: NodeConfig,
    bytes: u64,
    streams: usize,
    address: SocketAddr,
    peer: NodeName,
) -> Result<(), Failure> {
    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
    let endpoint = endpoint(&config)?;
    let cpu = cpu_time();
    let connection = endpoint.connect(address, &peer.certificate_name())?.await?;
    let begun = Instant::now();
    let mut open = Vec::with_capacity(streams);
    for _ in 0..streams {
        open.push(connection.open_uni().await?);
    }
    let (mut left, mut next) = (bytes, 0);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        open[next % streams].write_chunk(chunk.slice(..length)).await?;
        left -= length as u64;
        next += 1;
    }
    for stream in &mut open {
        stream.finish()?;
    }
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) if close.error_code == ALL_HERE.into() => {}
        error => return Err(error.into()),
    }
    let took = begun.elapsed();
    report(&Measured { took, cpu: cpu_time().saturating_sub(cpu) })
}

/// An endpoint as a node's fabric makes one, on a port that the kernel chooses.
fn endpoint(config: &NodeConfig) -> Result<Endpoint, Failure> {
    let identity = Identity::load(&config.identity, &config.name)?;
    let udp_payload = config.migration.udp_payload_bytes_max;
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(identity.server())?));
    server.transport_config(transport::shared(udp_payload));
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(identity.client())?));
    client.transport_config(transport::shared(udp_payload));
    let socket = socket(config)?;
    let settings = transport::endpoint_config(udp_payload)?;
    let mut endpoint = Endpoint::new(settings, Some(server), socket, Arc::new(TokioRuntime))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn socket(config: &NodeConfig) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((config.migration.listen.ip(), 0))?;
    let bytes = usize::try_from(config.migration.socket_buffer_bytes.bytes()).map_err(io::Error::other)?;
    let buffer = socket2::SockRef::from(&socket);
    buffer.set_recv_buffer_size(bytes)?;
    buffer.set_send_buffer_size(bytes)?;
    Ok(socket)
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

fn report(measured: &Measured) -> Result<(), Failure> {
    say(&serde_json::to_string(measured)?)
}
