#!/bin/busybox sh
# Process 1 of the test guest: load what drives the devices that are there, mount /data, offer a shell.
export PATH=/bin:/sbin HOME=/data TERM=linux
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /tmp /data /var/log /var/run
mount -t devpts pts /dev/pts

load() { cat /sys/bus/$1/devices/*/modalias 2>/dev/null | xargs modprobe -q -a 2>/dev/null; }
modprobe -q -a button evdev
load pci
load virtio
load scsi

tries=0
until grep -q '[hsv]d[a-z]*2$' /proc/partitions || [ $tries -ge 30 ]; do
    tries=$((tries + 1))
    usleep 100000
    load scsi
done
modprobe -q -a crc32c_generic ext4
disk=$(findfs LABEL=pvedata 2>/dev/null) && mount -t ext4 -o noatime "$disk" /data

acpid
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    [ -s /data/address ] && ip address add "$(cat /data/address)" dev eth0
fi
for port in /sys/class/virtio-ports/*; do
    if grep -qs '^org.qemu.guest_agent.0$' $port/name && [ -e /data/.agent/qemu-ga ]; then
        /data/.agent/loader --library-path /data/.agent /data/.agent/qemu-ga \
            -d -m virtio-serial -p /dev/${port##*/} -f /tmp/qemu-ga.pid -t /tmp -l /tmp/qemu-ga.log
    fi
done

console=/dev/ttyS0
stty -F $console 2>/dev/null >/dev/null || console=/dev/tty1
echo "pvetools-guest ready" >$console
while :; do
    setsid cttyhack sh <$console >$console 2>&1
done
