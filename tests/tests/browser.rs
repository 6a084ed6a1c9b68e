//! The page about a node in a real headless browser, by the protocol of its developer tools.
//!
//! `PORTOLAN_SCREENSHOTS` names a folder for pictures of the page, to look at.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Daemon, Host, scenario, wait_for};
use portolan_tests::stage::{PATIENCE, Stage, service};
use serde_json::{Value, json};

const PAGE: &str = "http://127.0.0.1:10249/";
/// Width and height of the two windows: of a computer, and of a phone.
const WIDE: [u32; 2] = [1100, 1000];
const PHONE: [u32; 2] = [400, 850];

/// A browser without a window, with one page, in the network namespace of a host.
struct Browser {
    stream: TcpStream,
    session: String,
    next: u64,
    _process: Daemon,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start(host: &Host) -> Result<Browser> {
        let profile = tempfile::tempdir()?;
        let mut command = host.command("chromium");
        command.args([
            "--headless=new",
            // The namespaces of the sandbox are refused to root.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-port=0",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg("about:blank");
        let process = host.spawn("chromium", command)?;
        let file = profile.path().join("DevToolsActivePort");
        let (port, path) = wait_for("the browser", PATIENCE, || {
            let text = fs::read_to_string(&file)?;
            let (port, path) = text.split_once('\n').context("half a file")?;
            ensure!(!path.trim().is_empty(), "half a file");
            Ok((port.parse::<u16>()?, path.trim().to_owned()))
        })?;
        let mut stream = host.run(move || TcpStream::connect(("127.0.0.1", port)))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        // RFC 6455, 4.1.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: cG9ydG9sYW4gc2VsZnRlc3Q=\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 101"), "no web socket");
        let mut browser = Browser {
            stream,
            session: String::new(),
            next: 1,
            _process: process,
            _profile: profile,
        };
        let made = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": made["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach)?;
        browser.session = attached["sessionId"]
            .as_str()
            .context("no session")?
            .to_owned();
        Ok(browser)
    }

    /// Sends a text frame. Its mask is zero, so the payload stays as it is.
    fn send(&mut self, text: &str) -> Result<()> {
        let length = text.len();
        let mut frame = vec![0x81];
        match u16::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | short as u8),
            Ok(middle) => {
                frame.push(0x80 | 126);
                frame.extend(middle.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.bytes());
        Ok(self.stream.write_all(&frame)?)
    }

    /// Receives a message, of one frame or several.
    fn receive(&mut self) -> Result<Value> {
        let mut text = Vec::new();
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head)?;
            let mut length = u64::from(head[1] & 0x7f);
            if length >= 126 {
                let mut bytes = [0; 8];
                let from = if length == 126 { 6 } else { 0 };
                self.stream.read_exact(&mut bytes[from..])?;
                length = u64::from_be_bytes(bytes);
            }
            let before = text.len();
            text.resize(before + usize::try_from(length)?, 0);
            self.stream.read_exact(&mut text[before..])?;
            match head[0] & 0x0f {
                0 | 1 if head[0] & 0x80 != 0 => return Ok(serde_json::from_slice(&text)?),
                0 | 1 => {}
                8 => bail!("the browser has closed the connection"),
                // Pings: the browser does not mind silence.
                _ => text.truncate(before),
            }
        }
    }

    /// Calls a method, and returns its result.
    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let id = self.next;
        self.next += 1;
        let mut request = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.clone().into();
        }
        self.send(&request.to_string())?;
        loop {
            let mut answer = self.receive()?;
            if answer["id"] == id {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].take());
            }
        }
    }

    /// Opens the page in a window of this size.
    fn open(&mut self, url: &str, [width, height]: [u32; 2]) -> Result<()> {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        self.call("Page.navigate", json!({ "url": url }))?;
        Ok(())
    }

    /// The value of an expression.
    fn value(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", parameters)?;
        ensure!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true; the error has the page's text.
    fn wait(&mut self, what: &str, expression: &str) -> Result<()> {
        let waited = wait_for(what, PATIENCE, || {
            let value = self.value(expression)?;
            ensure!(value == true, "{expression} is {value}");
            Ok(())
        });
        let Err(error) = waited else { return Ok(()) };
        let text = self.value("document.body.innerText")?;
        Err(error.context(format!("{text}")))
    }

    /// Writes a picture of the window, if pictures are wanted.
    fn screenshot(&mut self, name: &str) -> Result<()> {
        let Some(folder) = std::env::var_os("PORTOLAN_SCREENSHOTS") else {
            return Ok(());
        };
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let text = picture["data"].as_str().context("no picture")?;
        Ok(fs::write(Path::new(&folder).join(name), decode(text))?)
    }
}

/// Decodes base 64 (RFC 4648, 4).
fn decode(text: &str) -> Vec<u8> {
    let (mut bits, mut width, mut bytes) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        width += 6;
        if width >= 8 {
            width -= 8;
            bytes.push((bits >> width) as u8);
            bits &= (1 << width) - 1;
        }
    }
    bytes
}

#[scenario(Nft)]
#[ignore = "needs chromium"]
fn the_page_shows_services_flows_and_outages_in_a_browser() -> Result<()> {
    let stage = Stage::new()?;
    for n in 1..=12 {
        stage.add(
            &service(&format!("a-service-with-a-rather-long-name-{n}"), 100 + n),
            0..4,
        )?;
    }
    let gone = service("gone", 120);
    stage.add(&gone, 0..4)?;
    let daemon = stage.start_synced(&["--service-traffic=on"])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let to = Stage::address(&stage.web)?;
    let held = stage.client.hold(to, 8, Duration::from_millis(5))?;
    let mut browser = Browser::start(&stage.node)?;
    browser.open(PAGE, WIDE)?;
    browser.wait(
        "the state",
        "document.getElementById('state')?.textContent === 'OK'",
    )?;
    browser.wait(
        "the Service with the most bytes at the top",
        "(() => { const cells = document.querySelectorAll('#services tr:first-child td'); \
         return cells.length === 6 && cells[0].textContent === 'default/web' && /^(\\d+).\\1$/.test(cells[2].textContent) \
         && cells[3].textContent * 1 >= 8 && /^[1-9][0-9.]* k?B$/.test(cells[5].textContent); })()",
    )?;
    browser.wait(
        "the map",
        "document.querySelectorAll('#map svg rect').length >= 3 \
         && document.getElementById('map').textContent.includes('default/web') \
         && document.getElementById('map').textContent.includes('node-b')",
    )?;
    browser.value("document.querySelector('#services tr').click()")?;
    browser.wait(
        "the endpoints of the Service",
        "!document.getElementById('one').hidden && document.querySelectorAll('#endpoints tbody tr').length === 8",
    )?;
    browser.wait(
        "the bytes of the endpoints that the connections are at",
        "[...document.querySelectorAll('#endpoints tbody tr')].some((row) => /^[1-9][0-9.]* k?B$/.test(row.cells[6].textContent))",
    )?;
    browser.value(
        "[...document.querySelectorAll('#services tr')].find((row) => row.cells[0].textContent === 'default/gone').click()",
    )?;
    browser.wait(
        "the other Service",
        "document.querySelector('#one h2').textContent.startsWith('default/gone:')",
    )?;
    stage.manifests.remove("gone.yaml")?;
    browser.wait(
        "the Service to go with its details",
        "document.getElementById('one').hidden",
    )?;
    browser.value(
        "(() => { const filter = document.getElementById('filter'); filter.value = 'name-12'; filter.oninput(); })()",
    )?;
    browser.wait(
        "the one Service that is looked for",
        "document.querySelectorAll('#services tr').length === 1",
    )?;
    let loaded =
        browser.value("performance.getEntriesByType('resource').map((one) => one.name)")?;
    let loaded = loaded.as_array().context("no list")?;
    let is_own = |url: &Value| url.as_str().is_some_and(|url| url.starts_with(PAGE));
    ensure!(
        !loaded.is_empty() && loaded.iter().all(is_own),
        "{loaded:?}"
    );
    browser.open(PAGE, WIDE)?;
    let has_rows = "document.querySelectorAll('#services tr').length === 13 \
                    && document.querySelectorAll('#map svg rect').length >= 3";
    browser.wait("the page", has_rows)?;
    browser.screenshot("page.png")?;

    browser.open(PAGE, PHONE)?;
    browser.wait("the page on a phone", has_rows)?;
    browser.screenshot("page-phone.png")?;
    // Nothing has to be moved sideways, and nothing sticks out of the window.
    for expression in [
        "document.documentElement.scrollWidth <= innerWidth",
        "innerWidth === 400",
        "[...document.querySelectorAll('section, .tile, input, svg')].filter((one) => one.offsetParent !== null || one.tagName === 'svg')\
         .every((one) => one.getBoundingClientRect().right <= innerWidth + 1)",
        "[...document.querySelectorAll('td.name')].every((one) => one.getBoundingClientRect().width >= 100)",
        "parseFloat(getComputedStyle(document.body).fontSize) >= 14",
    ] {
        browser.wait(expression, expression)?;
    }
    drop(held);
    daemon.kill()?;
    browser.wait(
        "the outage",
        "document.getElementById('state').textContent.startsWith('NO ANSWER') \
         && document.getElementById('state').className === 'bad'",
    )?;
    // A daemon that has no list yet: its status is all that it can answer.
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    api.set_reachable(false);
    let _waiting = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    browser.wait(
        "the state without Services",
        "document.getElementById('state').textContent === 'STARTING' \
         && document.getElementById('more').textContent === 'the first sync is not complete'",
    )
}
