# Boots systemd as the first process of namespaces of its own, on a copy of this machine's files that is gone with
# it, so that nothing it does reaches the machine. LLAMA is in /opt/llama there, the checkout that it is of at
# /path/to/llama, and no service of the machine is enabled. As root:
#
#   unshare --mount sh boot.sh DIRECTORY GROUP CHECKOUT VENV PYTHON
#
# GROUP is the control group to be made for it, VENV the environment that has LLAMA and what it needs, and PYTHON
# the program that it is of, no link to that.
set -eu
directory=$1 group=$2 checkout=$3 venv=$4 python=$5 inside=${6-}

if [ -z "$inside" ]; then
    mount -t cgroup2 none "$directory"
    mkdir "$directory/$group"
    echo $$ >"$directory/$group/cgroup.procs"
    umount "$directory"
    exec unshare --cgroup --mount --pid --net --uts --ipc --fork --kill-child sh "$0" "$@" inside
fi

mount -t tmpfs none "$directory"
cd "$directory"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none root
cd root
mount -t proc none proc
mount --bind proc/sys/net proc/sys/net
mount --rbind proc/sys proc/sys
mount -o remount,bind,ro proc/sys # but for the network these settings are the machine's
mount -t sysfs -o ro none sys
mount -t cgroup2 none sys/fs/cgroup
for place in run tmp dev; do
    mount -t tmpfs none $place
done
mkdir dev/shm dev/pts
mount -t tmpfs none dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 none dev/pts
ln -s pts/ptmx dev/ptmx
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done

# An environment as VENV, but for what is below /home and /root, which units do not see.
base=$(dirname "$(dirname "$python")") version=$(basename "$python")
rm -rf etc/systemd/system etc/llama opt/llama usr/local/bin/llama var/lib/llama
sed -i /^llama:/d etc/passwd etc/shadow etc/group etc/gshadow
mkdir -p etc/systemd/system path/to/llama opt/base opt/packages opt/llama/bin "opt/llama/lib/$version/site-packages"
mount -o bind,ro "$checkout" path/to/llama
mount -o bind,ro "$base" opt/base
mount -o bind,ro "$venv/lib/$version/site-packages" opt/packages
echo /opt/base/lib >etc/ld.so.conf.d/base.conf
ldconfig -r .
echo 'home = /opt/base/bin' >opt/llama/pyvenv.cfg
ln -s "/opt/base/bin/$version" opt/llama/bin/python
printf '/path/to/llama\n/opt/packages\n' >"opt/llama/lib/$version/site-packages/llama.pth"
for program in twistd llama; do
    sed '1s,.*,#!/opt/llama/bin/python,' "$venv/bin/$program" >opt/llama/bin/$program
    chmod +x opt/llama/bin/$program
done

rm -f etc/hosts
printf '127.0.0.1 localhost\n192.0.2.1 iad-a\n192.0.2.2 iad-b\n192.0.2.3 lax-c\n' >etc/hosts
echo iad-a >etc/hostname
echo >etc/fstab
ip link set lo up
for number in 1 2 3; do
    ip address add 192.0.2.$number/32 dev lo
done

pivot_root . tmp
cd /
umount -l /tmp
exec env -i container=llama PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target --log-target=journal
