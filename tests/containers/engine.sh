#!/bin/sh
# Runs Docker and Compose from Debian packages in a folder, with a separate network, so that its ports and firewall rules do
# not affect this machine. Needs root, debootstrap, iproute2 and nftables.
#   engine.sh FOLDER start        create the folder and start the engine
#   engine.sh FOLDER run COMMAND  run a command with the engine: engine.sh FOLDER run docker compose ps
#   engine.sh FOLDER stop         stop the engine; the folder can then be removed
set -eu
folder=$(realpath -m "$1") && shift
root=$folder/root

case $1 in
start)
    if [ ! -d "$root/var/lib/docker" ]; then
        mkdir -p "$folder"
        engine=docker."io" # the Debian package; split because the name is also the host of a registry
        debootstrap --variant=minbase \
            --include=ca-certificates,$engine,docker-cli,docker-compose,docker-buildx,iptables,debootstrap,curl \
            trixie "$root" >"$folder/log" || { tail "$folder/log" >&2 && exit 1; }
        mkdir "$root/var/lib/docker" "$root/machine" "$root/old"
    fi
    ip netns add tickpipe
    ip link add tickpipe0 type veth peer name tickpipe1 netns tickpipe
    ip addr add 10.201.77.1/24 dev tickpipe0 && ip link set tickpipe0 mtu 1400 up
    ip -n tickpipe link set lo up
    ip -n tickpipe addr add 10.201.77.2/24 dev tickpipe1 && ip -n tickpipe link set tickpipe1 mtu 1400 up
    ip -n tickpipe route add default via 10.201.77.1
    cat /proc/sys/net/ipv4/ip_forward >"$folder/forward" && echo 1 >/proc/sys/net/ipv4/ip_forward
    nft 'table ip tickpipe { chain out { type nat hook postrouting priority 100; ip saddr 10.201.77.0/24 oifname != "tickpipe0" masquerade; }; }'
    # A mount namespace with the folder as root. It has the machine's /sys, because `ip netns exec` would hide the cgroups.
    setsid nsenter --net=/run/netns/tickpipe unshare --mount --propagation private sh -eu -c '
        mount --bind "$1" "$1" && cd "$1"
        for at in proc sys dev; do mount --rbind "/$at" "$at"; done
        mount -t tmpfs tmpfs run
        mount --bind "$2" machine
        cp /etc/resolv.conf etc/ && cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/
        [ ! -f /etc/pip.conf ] || cp /etc/pip.conf etc/
        pivot_root . old && umount -l /old
        exec dockerd --mtu 1400' - "$root" "$(pwd)" >"$folder/log" 2>&1 &
    echo $! >"$folder/pid"
    for _ in $(seq 60); do "$0" "$folder" run docker version >/dev/null 2>&1 && exit 0 || sleep 1; done
    tail "$folder/log" >&2 && exit 1
    ;;
run)
    shift
    exec nsenter --target "$(cat "$folder/pid")" --mount --net sh -c 'cd /machine && exec "$@"' - "$@"
    ;;
stop)
    if kill "$(cat "$folder/pid")"; then while kill -0 "$(cat "$folder/pid")" 2>/dev/null; do sleep 1; done; fi
    nft delete table ip tickpipe
    cat "$folder/forward" >/proc/sys/net/ipv4/ip_forward
    ip link delete tickpipe0
    ip netns delete tickpipe
    ;;
esac
