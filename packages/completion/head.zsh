# Made of the table of options that --help is made of.

local curcontext=$curcontext state line
typeset -A opt_args

# The nodes are the sections of the configuration: a colon that stands before any equals sign.
_cmapp_nodes() {
    local file=${opt_args[--config]:-/etc/cmappmgr.conf}
    local -a nodes
    nodes=(${(f)"$(sed -n 's/^[[:space:]]*\(\[[^]]*]\|[^]:=#[[:space:]]*\)[[:space:]]*:.*/\1/p' ${~file} 2>/dev/null)"})
    compadd -a nodes
}

# Words behind -service are a command in the guest; what is installed here is the best guess.
_cmapp_guest_command() {
    _normal
}

