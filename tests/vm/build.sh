#!/usr/bin/env bash
# Makes the Linux guest of the tests: OUT_DIR/vmlinuz and OUT_DIR/initramfs.cpio.gz. What is there and fits is kept.
#
#   tests/vm/build.sh OUT_DIR
#
# The kernel is Debian's for clouds, unpacked and not installed; beside it busybox and tests/vm/vmload. See README.md.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: tests/vm/build.sh OUT_DIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

# Each stands on those before it.
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net
  virtio_console evdev button"

fail() {
  echo "tests/vm/build.sh: $*" >&2
  exit 1
}

# The package of the newest kernel that apt knows; nothing if it knows none.
newest() {
  { apt-cache depends --important linux-image-cloud-amd64 2>/dev/null || true; } | sed -n 's/^ *Depends: //p' | head -n 1
}

for tool in busybox cpio; do
  command -v "$tool" >/dev/null || fail "no $tool: apt-get install --no-install-recommends busybox-static cpio"
done
if grep -q INTERP <(readelf --program-headers "$(command -v busybox)" 2>/dev/null); then
  fail "busybox is not static: apt-get install --no-install-recommends busybox-static"
fi

# One builds at a time: tests that start together share OUT_DIR.
exec 9>"$out/lock"
flock 9

# --target keeps the static flag away from build scripts and procedural macros, which must stay dynamic.
target=$(rustc -vV | sed -n 's/^host: //p')
built=$(RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release --locked --target "$target" \
  --package godwit-vmload --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$built" ] || fail "cargo built no vmload"

# Once there, a kernel is kept: another one would be another guest. To take a newer one, remove OUT_DIR.
kernel=$(find "$out" -maxdepth 1 -name 'linux-image-*.deb' | head -n 1)
if [ -z "$kernel" ]; then
  package=$(newest)
  if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && package=$(newest)
  fi
  [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64: apt-get update"
  download=$(mktemp -d "$out/download.XXXXXX")
  fetch() { (cd "$download" && apt-get download -qq -o APT::Sandbox::User=root "$package"); }
  # What apt knows may be older than what the archive has.
  renew() { [ "$(id -u)" = 0 ] && apt-get update -qq && package=$(newest); }
  fetch || { renew && fetch; } || fail "no download of $package: apt-get update"
  mv "$download"/*.deb "$out/"
  rmdir "$download"
  kernel=$(find "$out" -maxdepth 1 -name 'linux-image-*.deb' | head -n 1)
fi

stamp=$({ cat init build.sh "$built" "$(command -v busybox)"; basename "$kernel"; } | sha256sum)
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
dpkg-deb --fsys-tarfile "$kernel" | tar -x -C "$work" --wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/drivers/virtio/*' \
  './lib/modules/*/kernel/drivers/block/virtio_blk.ko*' './lib/modules/*/kernel/drivers/net/*' './lib/modules/*/kernel/net/core/*' \
  './lib/modules/*/kernel/drivers/char/virtio_console.ko*' './lib/modules/*/kernel/drivers/input/evdev.ko*' \
  './lib/modules/*/kernel/drivers/acpi/button.ko*'
root=$work/root
mkdir -p "$root/bin" "$root/modules"
for module in $modules; do
  found=$(find "$work/lib" -name "$module.ko*" | head -n 1)
  case $found in
    *.ko) cp "$found" "$root/modules/" ;;
    *.ko.xz) xz -dc "$found" >"$root/modules/$module.ko" ;;
    *) fail "$(basename "$kernel") has no module $module" ;;
  esac
  echo "$module.ko" >>"$root/modules/order"
done
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
strip -o "$root/bin/vmload" "$built"
install -m 755 init "$root/init"
# The same input gives the same bytes: neither times nor owners nor the order of a folder get in.
find "$root" -exec touch --no-dereference --date=@0 {} +
(cd "$root" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --reproducible --owner=+0:+0 --quiet) |
  gzip -n -6 >"$work/initramfs.cpio.gz"
mv "$work"/boot/vmlinuz-* "$out/vmlinuz"
mv "$work/initramfs.cpio.gz" "$out/initramfs.cpio.gz"
echo "$stamp" >"$out/stamp"
