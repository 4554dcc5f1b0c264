#!/usr/bin/env bash
# A whole Debian 13 host in a virtual machine, and in it `godwit lab` with Linux guests under KVM: systemd, cgroups v2,
# another kernel, another QEMU. Prints what the lab prints; ends as the lab ends.
#
#   tests/vm/host.sh OUT_DIR GUEST_DIR GODWIT      GUEST_DIR as tests/vm/build.sh makes it; as root
#
# The host's processor is emulated with AMD's SVM, so KVM works in it where it does not here: slowly, and on one
# processor, since emulated SVM has damaged the host's kernel with two.
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: tests/vm/host.sh OUT_DIR GUEST_DIR GODWIT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
guest=$(cd "$2" && pwd)
godwit=$(realpath "$3")
tree=$out/tree

for tool in debootstrap mkfs.ext4; do
  command -v "$tool" >/dev/null || { echo "no $tool: apt-get install debootstrap e2fsprogs" >&2; exit 1; }
done
if [ ! -e "$out/made" ]; then
  rm -rf "$tree"
  debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,udev,iproute2,linux-image-cloud-amd64,initramfs-tools,qemu-system-x86 trixie "$tree"
  touch "$out/made"
fi
cp "$godwit" "$tree/usr/local/bin/godwit"
cp "$guest/vmlinuz" "$guest/initramfs.cpio.gz" "$tree/root/"
echo 'LABEL=root / ext4 rw 0 1' >"$tree/etc/fstab"
cat >"$tree/root/run" <<'RUN'
#!/bin/sh
echo "host: Linux $(uname -r), $(qemu-system-x86_64 --version | head -n 1), cgroups $(stat -fc %T /sys/fs/cgroup)"
modprobe kvm_amd
ls /dev/kvm
ip link set lo up
godwit lab --runner qemu --accel kvm --kernel /root/vmlinuz --initrd /root/initramfs.cpio.gz --memory 256Mi
echo "host: the lab has ended with $?"
RUN
chmod +x "$tree/root/run"
cat >"$tree/etc/systemd/system/lab.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/root/run
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStopPost=/bin/sh -c "systemctl --no-block poweroff 2>/dev/null"
[Install]
WantedBy=graphical.target
UNIT
chroot "$tree" systemctl --quiet enable lab.service
chroot "$tree" systemctl --quiet mask serial-getty@ttyS0.service
rm -rf "$tree/vm"
mkfs.ext4 -q -F -L root -d "$tree" "$out/disk.img" 6G
mkdir "$tree/vm"
mv "$out/disk.img" "$tree/vm/disk.img"
cp "$tree"/boot/vmlinuz-* "$tree/vm/vmlinuz"
cp "$tree"/boot/initrd.img-* "$tree/vm/initrd"
# The tree's own QEMU: 7.2's emulated SVM stands still after a minute.
# shellcheck disable=SC2016 # the inner shell's
timeout 3600 unshare -m bash -c 'mount --bind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot "$0" qemu-system-x86_64 "$@"' "$tree" \
  -accel tcg -cpu EPYC,+svm -smp 1 -m 4G -nodefaults -no-reboot -display none -serial stdio \
  -kernel /vm/vmlinuz -initrd /vm/initrd -append "root=LABEL=root console=ttyS0 mitigations=off quiet panic=-1" \
  -drive file=/vm/disk.img,if=virtio,format=raw,cache=unsafe </dev/null 2>"$out/errors" | tee "$out/said" || cat "$out/errors" >&2
grep -q 'the lab has ended with 0' "$out/said"
