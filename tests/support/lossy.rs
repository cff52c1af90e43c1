//! A way to a server on which one answer is lost after the server has given it.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// Where to ask instead of `server`, as `--server` takes it. The answer on connection `lost`, counted from 0, is lost.
pub(crate) async fn way_to(server: &str, lost: usize) -> String {
    let server: SocketAddr = server.trim_start_matches("http://").parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for n in 0.. {
            let Ok((client, _)) = listener.accept().await else { return };
            tokio::spawn(carry(client, server, n == lost));
        }
    });
    format!("http://{addr}")
}

async fn carry(mut client: TcpStream, server: SocketAddr, lose: bool) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    if !lose {
        let _ = copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    let ((mut from_client, to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
    let answer = async {
        let mut heard = Vec::new();
        while !is_answer(&heard) && from_server.read_buf(&mut heard).await.unwrap_or(0) > 0 {}
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = answer => {}
    }
    let _ = to_client;
    let _ = client.shutdown().await;
}

/// Whether a server has begun to answer a call: in HTTP/1 with its first byte, in HTTP/2 with a frame of headers.
fn is_answer(heard: &[u8]) -> bool {
    let mut rest = heard;
    while let [a, b, c, kind, _, _, _, _, _, frame @ ..] = rest {
        if heard.starts_with(b"HTTP/1") || *kind == 1 {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        rest = frame.get(length..).unwrap_or_default();
    }
    false
}
