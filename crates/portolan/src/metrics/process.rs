//! Metrics of this process, read from `/proc/self` when metrics are read. Names and units are those of Prometheus' client
//! libraries (`process_*`), which kube-proxy's dashboards use.

use std::fmt;

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, WithCurrentSystemInfo};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads `/proc/self`.
#[derive(Debug)]
pub(super) struct ProcessCollector;

struct Reading {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    max_virtual_bytes: f64,
    open_files: usize,
    max_files: f64,
    start_seconds: f64,
    received_bytes: u64,
    sent_bytes: u64,
    threads: i64,
}

impl Reading {
    fn take() -> ProcResult<Reading> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let limits = process.limits()?;
        let ticks = procfs::ticks_per_second() as f64;
        let boot = procfs::boot_time_secs()? as f64;
        let devices = process.dev_status()?;
        Ok(Reading {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            max_virtual_bytes: limit(limits.max_address_space.soft_limit),
            open_files: process.fd_count()?,
            max_files: limit(limits.max_open_files.soft_limit),
            start_seconds: boot + stat.starttime as f64 / ticks,
            received_bytes: devices.values().map(|device| device.recv_bytes).sum(),
            sent_bytes: devices.values().map(|device| device.sent_bytes).sum(),
            threads: stat.num_threads,
        })
    }
}

/// As Prometheus' clients write "unlimited".
fn limit(value: LimitValue) -> f64 {
    match value {
        LimitValue::Value(value) => value as f64,
        LimitValue::Unlimited => u64::MAX as f64,
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading = match Reading::take() {
            Ok(reading) => reading,
            Err(error) => {
                tracing::debug!(%error, "cannot read /proc/self for process metrics");
                return Ok(());
            }
        };
        let mut write = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            let kind = metric.metric_type();
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
        };
        let gauge = ConstGauge::<f64>::new;
        let r = &reading;
        let cpu = ConstCounter::new(r.cpu_seconds);
        write(
            "process_cpu_seconds",
            "Processor time used, in seconds",
            &cpu,
        )?;
        let resident = ConstGauge::new(r.resident_bytes);
        write(
            "process_resident_memory_bytes",
            "Resident memory, in bytes",
            &resident,
        )?;
        let reserved = ConstGauge::new(r.virtual_bytes);
        write(
            "process_virtual_memory_bytes",
            "Virtual memory, in bytes",
            &reserved,
        )?;
        let help = "Limit of virtual memory, in bytes";
        write(
            "process_virtual_memory_max_bytes",
            help,
            &gauge(r.max_virtual_bytes),
        )?;
        write(
            "process_open_fds",
            "Open file descriptors",
            &ConstGauge::new(r.open_files),
        )?;
        write(
            "process_max_fds",
            "Limit of open file descriptors",
            &gauge(r.max_files),
        )?;
        let help = "Start of the process, in seconds since 1970";
        write("process_start_time_seconds", help, &gauge(r.start_seconds))?;
        let help = "Bytes received by the network namespace of the process";
        write(
            "process_network_receive_bytes",
            help,
            &ConstCounter::new(r.received_bytes),
        )?;
        let help = "Bytes sent by the network namespace of the process";
        write(
            "process_network_transmit_bytes",
            help,
            &ConstCounter::new(r.sent_bytes),
        )?;
        write(
            "portolan_threads",
            "Threads of the process",
            &ConstGauge::new(r.threads),
        )
    }
}
