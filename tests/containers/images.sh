#!/bin/sh
# Builds stand-ins, of Debian's packages, under the names of the images that we build from and run: for an engine that can
# reach Debian's packages and no registry of images. Needs debootstrap and root. Never where you use the real ones.
set -eu
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates trixie "$folder/root" >"$folder/log" || { tail "$folder/log" >&2 && exit 1; }
# What this machine trusts, and how it is told to use pip: not in any file of ours.
cp /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$folder/root/etc/"
tar -C "$folder/root" -c . | docker import - tickpipe-debian
for image in $(sed -n 's/^FROM \([^ ]*\).*/\1/p; s/^ *image: //p' ../../Dockerfile ../../docker-compose.yml |
    grep -v -e '^tickpipe$' -e grafana | sort -u); do
    target=${image%%:*}
    docker build --quiet --target "${target##*/}" --tag "$image" .
done
