#!/usr/bin/env bash
# Installs the Debian packages that some tests use, where that is allowed. Never fails: such tests are skipped without them.
set -u
declare -A package_of=([dcmsend]=dcmtk [dciodvfy]=dicom3tools [Orthanc]=orthanc [initdb]=postgresql)
servers=(/usr/lib/postgresql/*/bin)  # not in anybody's PATH
missing=()
for command in "${!package_of[@]}"; do
  PATH="$PATH:/usr/sbin:${servers[0]}" command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null && as_root=(sudo -n)
  [ "${#as_root[@]}" -gt 0 ] || { echo "not root: ${missing[*]} not installed, their tests are skipped"; exit 0; }
fi
command -v apt-get >/dev/null || { echo "no apt-get: ${missing[*]} not installed, their tests are skipped"; exit 0; }

# Orthanc's package would start a server that listens on every address; the tests start their own, in a network namespace.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod +x "$policy"
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq -o Dpkg::Use-Pty=0)
"${apt[@]}" update >/dev/null 2>&1
"${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
  echo "apt-get could not install ${missing[*]}; their tests are skipped"
exit 0
