#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Makes a disk of the system in $1, for a dom0 with the kernel whose modules are in
# $MODULES: the image $OUTPUT/disk, the initramfs $OUTPUT/initrd that mounts it, and the key
# $OUTPUT/key of who may log in.
set -eu
root=$1
version=${MODULES##*/}

# The drivers of Xen, of the emulated disk and network, and of the file system.
for part in drivers/xen drivers/virtio drivers/block/virtio_blk.ko \
    drivers/net/virtio_net.ko drivers/net/net_failover.ko net/core/failover.ko \
    fs/ext4 fs/jbd2 fs/mbcache.ko lib/crc16.ko crypto/crc32c_generic.ko; do
    mkdir -p "$root/lib/modules/$version/kernel/$(dirname "$part")"
    cp -r "$MODULES/kernel/$part" "$root/lib/modules/$version/kernel/$part"
done
cp "$MODULES"/modules.builtin* "$MODULES/modules.order" "$root/lib/modules/$version/"
chroot "$root" depmod "$version"

ssh-keygen -q -t ed25519 -N '' -C lab -f "$OUTPUT/key"
install -D -m 600 "$OUTPUT/key.pub" "$root/root/.ssh/authorized_keys"
cat >"$root/etc/systemd/network/lab.network" <<END
[Match]
Name=en* eth*

[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
END
echo dom0 >"$root/etc/hostname"
echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"
chroot "$root" systemd-machine-id-setup
chroot "$root" systemctl enable systemd-networkd.service
# What takes time on an emulated machine, and has nothing to do with Xen.
chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer getty.target logrotate.timer \
    systemd-networkd-wait-online.service systemd-update-utmp.service

# mmdebstrap keeps services from starting until it is done, which is after this.
rm "$root/usr/sbin/policy-rc.d"
mv "$root/sbin/start-stop-daemon.REAL" "$root/sbin/start-stop-daemon"

# A second mount of the system does not have what is mounted in it, such as /proc.
small=$(mktemp -d)
mount --bind "$root" "$small"
truncate -s 1500M "$OUTPUT/disk"
mke2fs -q -t ext4 -d "$small" "$OUTPUT/disk" || failed=1
umount "$small"
[ -z "${failed:-}" ]

mkdir -p "$small/bin" "$small/proc" "$small/sys" "$small/dev" "$small/root" "$small/modules"
cp "$root/bin/busybox" "$small/bin/"
for name in sh mount insmod switch_root; do
    ln -s busybox "$small/bin/$name"
done
{
    echo '#!/bin/sh'
    echo 'mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sys /sys'
    chroot "$root" modprobe -S "$version" --all --show-depends virtio_pci virtio_blk \
        crc32c_generic ext4 | while read -r verb path _; do
        [ "$verb" = insmod ] || continue
        [ ! -e "$small/modules/${path##*/}" ] || continue
        cp "$root$path" "$small/modules/"
        echo "insmod /modules/${path##*/}"
    done
    echo 'mount -t ext4 /dev/vda /root'
    echo 'for part in dev proc sys; do mount -o move /$part /root/$part; done'
    echo 'exec switch_root /root /lib/systemd/systemd'
} >"$small/init"
chmod 755 "$small/init"
(cd "$small" && find . | cpio --quiet -o -H newc | gzip -1) >"$OUTPUT/initrd"
rm -r "$small"
