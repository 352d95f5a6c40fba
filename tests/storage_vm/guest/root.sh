#!/bin/sh
# Runs in a minimal root: the tools of all storages, and servers for them.  /kernel is unpacked into it already.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
apt-get -q update
apt-get -q -y --no-install-recommends install "$@"
# Services that a test starts itself, and what only costs time under emulation.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    logrotate.timer man-db.timer systemd-timesyncd.service systemd-random-seed.service systemd-update-utmp.service getty@tty1.service \
    systemd-hwdb-update.service systemd-binfmt.service nmbd.service samba-ad-dc.service winbind.service blk-availability.service \
    networking.service smartmontools.service smartd.service systemd-journal-flush.service systemd-ask-password-wall.path \
    systemd-logind.service nfs-blkmap.service rpc-gssd.service rpc-svcgssd.service zfs-volume-wait.service \
    multipath-tools.service multipathd.socket tgt.service rtslib-fb-targetctl.service ssh.service nvmf-autoconnect.service \
    systemd-networkd-wait-online.service systemd-tmpfiles-clean.timer lvm2-monitor.service \
    zfs-import-cache.service zfs-import-scan.service zfs-mount.service zfs-share.service zfs-load-module.service \
    libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests.service virtlogd.socket \
    virtlockd.socket lxc.service lxc-net.service lxc-monitord.service ceph.target ceph-crash.service \
    systemd-udev-settle.service serial-getty@ttyS0.service; do
    case $unit in
        # wanted by tests, not at boot
        multipath-tools.service|tgt.service|ssh.service|rtslib-fb-targetctl.service|lvm2-monitor.service|libvirtd*|virtlo*|ceph.target) systemctl disable "$unit" 2>/dev/null || true ;;
        *) systemctl mask "$unit" 2>/dev/null || true ;;
    esac
done
systemctl set-default multi-user.target
systemctl enable pvetools-agent.service
passwd -d root
apt-get clean
rm -rf /var/lib/apt/lists/* /kernel
