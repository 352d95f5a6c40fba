#!/bin/sh
# Runs in a minimal root: the release's newest kernel with its modules, and ZFS built for it by DKMS.
# Leaves /kernel with vmlinuz and lib/modules of that kernel.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
apt-get -q update
headers=$(apt-cache depends linux-headers-amd64 | sed -n 's/^ *Depends: \(linux-headers-[0-9]\S*\)$/\1/p' | head -1)
version=${headers#linux-headers-}
[ -n "$version" ] || { echo "no kernel headers behind linux-headers-amd64" >&2; exit 1; }
# The tools first: configuring zfs-dkms would build with all processors and hide what goes wrong.
apt-get -q -y --no-install-recommends install "$headers" dkms gcc make libc6-dev kmod xz-utils
mkdir -p /kernel /tmp/packages
cd /tmp/packages
apt-get -q -o APT::Sandbox::User=root download "linux-image-$version" zfs-dkms
for package in *.deb; do dpkg-deb -x "$package" /kernel; done
# headers and image share /lib/modules/VERSION: DKMS installs the result there
cp -a "/kernel/lib/modules/$version/." "/lib/modules/$version/"
cp "/kernel/boot/vmlinuz-$version" /kernel/vmlinuz
cp -a /kernel/usr/src/zfs-* /usr/src/
zfs=$(basename /usr/src/zfs-*)
dkms add -m zfs -v "${zfs#zfs-}" >/dev/null
dkms build -m zfs -v "${zfs#zfs-}" -k "$version" -j "$(nproc)" || { tail -50 /var/lib/dkms/zfs/*/build/make.log >&2; exit 1; }
dkms install -m zfs -v "${zfs#zfs-}" -k "$version"
test -e "/lib/modules/$version/updates/dkms/zfs.ko"
rm -rf /kernel/boot /kernel/usr /kernel/lib
mkdir -p /kernel/lib/modules
cp -a "/lib/modules/$version" /kernel/lib/modules/
cd "/kernel/lib/modules/$version"
rm -rf build source
# what no storage test drives
rm -rf kernel/sound kernel/drivers/gpu kernel/drivers/media kernel/drivers/staging kernel/drivers/iio kernel/drivers/input \
    kernel/drivers/hid kernel/drivers/usb kernel/drivers/infiniband kernel/drivers/bluetooth kernel/drivers/net/wireless \
    kernel/drivers/net/ethernet kernel/drivers/isdn kernel/drivers/mtd kernel/drivers/hwmon kernel/drivers/video \
    kernel/drivers/edac kernel/drivers/mmc kernel/drivers/comedi kernel/net/wireless kernel/net/mac80211 kernel/net/bluetooth
depmod -b /kernel "$version"
