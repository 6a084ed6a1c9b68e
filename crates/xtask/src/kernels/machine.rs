//! A virtual machine: another kernel with this machine's programs.
//!
//! Owns the first file system of the guest (busybox, the few modules that lead to this machine's root) and the command
//! line of QEMU. The root is shared read-only over 9p; `/run`, `/var/tmp` and `/dev/shm` are the guest's own memory.
//! Modules are loaded as on any machine, when the kernel asks for them, from the unpacked package. There is no
//! network and no hardware virtualization: the emulated machine is some ten times slower.
//!
//! What the script prints comes back over a serial line of its own; the console is kept in a file beside it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::BOOT;
use super::packages::Unpacked;
use crate::run::output;
use crate::tools;

/// Drivers that lead to the root: the bus, its transport, the file system.
const DRIVERS: [&str; 3] = ["virtio_pci", "9pnet_virtio", "9p"];

/// Kernels from this series on panic now and then with two emulated processors.
const ONE_PROCESSOR_FROM: u32 = 7;

/// Boots the kernel and runs the script by bash as root. What it prints is appended to `answers`, the console to
/// `console`.
///
/// Errors: when it does not end in `limit` and the time of booting, or never came to run the script.
pub(crate) fn boot(
    kernel: &Unpacked,
    script: &str,
    limit: Duration,
    answers: &Path,
    console: &Path,
) -> Result<()> {
    let work = tempfile::tempdir().context("make a folder for the machine")?;
    let script_file = work.path().join("script");
    std::fs::write(&script_file, script)?;
    let first_root = first_root(kernel, work.path(), &script_file)?;
    let printed = |file: &Path| std::fs::metadata(file).map_or(0, |file| file.len());
    let before = printed(answers);
    let append = std::fs::OpenOptions::new().append(true).open(console);
    let log = append.with_context(|| format!("open {}", console.display()))?;
    let mut machine = qemu(kernel, &first_root, answers)?
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start QEMU")?;
    let end = Instant::now() + limit + BOOT;
    // A kernel that does not come up need not be waited for as long as one that works.
    let up = Instant::now() + BOOT;
    loop {
        if machine.try_wait()?.is_some() {
            break;
        }
        let is_down = Instant::now() >= up && printed(answers) == before;
        if Instant::now() >= end || is_down {
            machine.kill()?;
            machine.wait()?;
            ensure!(is_down, "stopped, since it was not over in {limit:?}");
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(
        printed(answers) > before,
        "it did not come to run anything: see {}",
        console.display()
    );
    Ok(())
}

/// The kernel's image: releases put it into `boot`, newer ones beside the modules.
fn image(kernel: &Unpacked) -> Result<PathBuf> {
    let release = &kernel.release;
    [
        kernel.folder.join(format!("boot/vmlinuz-{release}")),
        kernel.folder.join(format!("lib/modules/{release}/vmlinuz")),
    ]
    .into_iter()
    .find(|image| image.is_file())
    .with_context(|| format!("no image in {}", kernel.folder.display()))
}

/// How many a machine with this kernel has.
pub(crate) fn processors(kernel: &Unpacked) -> u32 {
    let series = kernel.release.split('.').next();
    let series = series.and_then(|number| number.parse::<u32>().ok());
    match series.unwrap_or(0) {
        ONE_PROCESSOR_FROM.. => 1,
        _ => 2,
    }
}

fn qemu(kernel: &Unpacked, first_root: &Path, answers: &Path) -> Result<Command> {
    let processors = processors(kernel);
    let threads = if processors == 1 { "single" } else { "multi" };
    // It shall not outlive us.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel"]);
    qemu.args([
        &format!("tcg,thread={threads}"),
        "-cpu",
        "max",
        "-smp",
        &processors.to_string(),
    ])
    .args([
        "-m",
        "2048",
        "-display",
        "none",
        "-no-reboot",
        "-nodefaults",
        "-nic",
        "none",
    ])
    .args(["-serial", "stdio"])
    .arg("-chardev")
    .arg(format!(
        "file,id=answers,append=on,path={}",
        answers.display()
    ))
    .args(["-serial", "chardev:answers"])
    .arg("-kernel")
    .arg(image(kernel)?)
    .arg("-initrd")
    .arg(first_root)
    .args([
        "-append",
        "console=ttyS0 panic=-1 quiet edd=off mitigations=off",
    ])
    .args([
        "-virtfs",
        "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
    ]);
    Ok(qemu)
}

/// The guest's first root as a compressed archive.
fn first_root(kernel: &Unpacked, work: &Path, script: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    for folder in ["bin", "sbin", "proc", "sys", "dev", "mnt", "modules"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    let busybox = tools::find("busybox").context("busybox is gone")?;
    std::fs::copy(&busybox, root.join("bin/busybox")).context("copy busybox")?;
    let mut load = String::new();
    for (number, module) in drivers(kernel)?.iter().enumerate() {
        let name = format!("modules/{number}.ko");
        std::fs::write(root.join(&name), decompressed(module)?)?;
        load += &format!("insmod /{name}\n");
    }
    write_program(&root.join("init"), &init(&load, script, &kernel.folder))?;
    // The kernel runs this when something asks for a module that is not there.
    let modules = kernel.folder.display();
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    write_program(
        &root.join("sbin/modprobe"),
        &format!(
            "#!/bin/busybox sh\nexec /bin/busybox chroot /mnt /usr/bin/env {path} modprobe -d {modules} \"$@\"\n"
        ),
    )?;
    let archive = work.join("root.gz");
    let pack = format!(
        "cd '{}' && find . | cpio -o -H newc --quiet | gzip -1 > '{}'",
        root.display(),
        archive.display()
    );
    output(Command::new("sh").args(["-c", &pack]))?;
    Ok(archive)
}

/// The files of [`DRIVERS`] and what they need, in the order of loading. What the kernel has built in is none.
fn drivers(kernel: &Unpacked) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for driver in DRIVERS {
        let mut command = Command::new("modprobe");
        command.arg("-d").arg(&kernel.folder).args([
            "-S",
            &kernel.release,
            "--show-depends",
            driver,
        ]);
        for line in String::from_utf8_lossy(&output(&mut command)?).lines() {
            if let Some(file) = line.strip_prefix("insmod ") {
                let file = PathBuf::from(file.trim());
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
    }
    Ok(files)
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return std::fs::read(module).with_context(|| format!("read {}", module.display())),
    };
    output(Command::new(program).arg("-dc").arg(module))
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The guest's first program: leads to the shared root, runs the script there, and switches off.
fn init(load: &str, script: &Path, modules: &Path) -> String {
    format!(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
{load}\
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose host /mnt || echo 'no root'
mount -t proc proc /mnt/proc
mount -t sysfs sys /mnt/sys
mount -t devtmpfs dev /mnt/dev
mkdir -p /mnt/dev/shm
mount -t tmpfs shm /mnt/dev/shm
mount -t tmpfs run /mnt/run
mount -t tmpfs tmp /mnt/var/tmp
ip link set lo up
cp /mnt{script} /mnt/run/script
stty -F /dev/ttyS1 raw -echo 2>/dev/null
chroot /mnt /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run MODULES={modules} /bin/bash /run/script > /dev/ttyS1 2>&1
sync
poweroff -f
",
        script = script.display(),
        modules = modules.display(),
    )
}
