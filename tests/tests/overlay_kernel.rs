//! The overlay's way into the kernel, by itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use lab::{Lab, scenario};
use net_types::{Family, PerFamily};
use nix::errno::Errno;
use vxlan_overlay::{Device, Kernel, Mac, Operation, Refused, Watched};

const DEVICE: &str = "flannel.1";
/// Several times what is sent at once.
const STEPS: u8 = 200;

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn device(parent: u32) -> Result<Device> {
    Ok(Device {
        name: DEVICE.to_owned(),
        vni: 1,
        port: 8472,
        mac: mac(u8::MAX),
        mtu: 1450,
        parent,
        local: address(u8::MAX),
        address: "10.244.0.0/32".parse()?,
    })
}

#[scenario(Vxlan, Nft)]
fn refused_steps_are_named_and_all_others_are_carried_out() -> Result<()> {
    let lab = Lab::new()?;
    lab.node("node-0")?.run(|| {
        let mut kernel = Kernel::open()?;
        let watched = Watched {
            devices: PerFamily::new(DEVICE.to_owned(), String::new()),
            ..Watched::default()
        };
        let interfaces = kernel.observe(&watched)?.surroundings.interfaces;
        let parent = interfaces.iter().find(|interface| interface.name == "eth0");
        let parent = parent.context("no eth0")?.index;
        ensure!(kernel.apply(&[Operation::CreateDevice(device(parent)?)])? == []);
        let made = kernel.observe(&watched)?.tunnels;
        let made = made[Family::Ip].device.as_ref();
        let index = made.context("no device")?.index;

        // What is not there cannot be deleted. Runs of such steps, and one as the last of all.
        let (wrong, right): (Vec<u8>, Vec<u8>) =
            (0..STEPS).partition(|n| n % 7 == 3 || (60..70).contains(n) || n + 1 == STEPS);
        let delete = |n: u8| Operation::DeleteForwarding(index, mac(n));
        let put = |n: u8| Operation::PutForwarding(index, mac(n), address(n).into());
        let steps: Vec<_> = (0..STEPS)
            .map(|n| {
                if wrong.contains(&n) {
                    delete(n)
                } else {
                    put(n)
                }
            })
            .collect();
        let refused: Vec<_> = wrong
            .iter()
            .map(|n| Refused {
                operation: delete(*n),
                errno: Errno::ENOENT,
            })
            .collect();
        ensure!(kernel.apply(&steps)? == refused);
        let found = kernel.observe(&watched)?.tunnels[Family::Ip].clone();
        let wanted: BTreeSet<_> = right
            .iter()
            .map(|n| (mac(*n), address(*n).into()))
            .collect();
        ensure!(found.fdb.into_iter().collect::<BTreeSet<_>>() == wanted);
        Ok(())
    })?
}
