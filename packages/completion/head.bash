# Made of the table of options that --help is made of.

# Sets the word to complete and the option before it. Readline takes --port=53 for three words.
_cmapp_words() {
    _cmapp_word=${COMP_WORDS[COMP_CWORD]}
    _cmapp_before=${COMP_WORDS[COMP_CWORD - 1]}
    if [[ $_cmapp_word == = ]]; then
        _cmapp_word=
    elif [[ $_cmapp_before == = ]]; then
        _cmapp_before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    COMPREPLY=()
}

_cmapp_offer() {
    COMPREPLY=($(compgen -W "$1" -- "$_cmapp_word"))
}

_cmapp_files() {
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$_cmapp_word"))
}

# The nodes are the sections of the configuration: a colon that stands before any equals sign.
_cmapp_offer_nodes() {
    local file=/etc/cmappmgr.conf index
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            --config)
                file=${COMP_WORDS[index + 1]}
                [[ $file == = ]] && file=${COMP_WORDS[index + 2]}
                ;;
        esac
    done
    _cmapp_offer "$(sed -n 's/^[[:space:]]*\(\[[^]]*]\|[^]:=#[[:space:]]*\)[[:space:]]*:.*/\1/p' "${file/#\~/$HOME}" 2>/dev/null)"
}

# Behind one of these options all that follows is a command: completed as such, also where bash-completion is absent.
_cmapp_command_after() {
    local index option
    for ((index = 1; index < COMP_CWORD; index++)); do
        for option; do
            [[ ${COMP_WORDS[index]} == "$option" ]] || continue
            if declare -F _comp_command_offset >/dev/null; then
                _comp_command_offset $((index + 1))
            elif declare -F _command_offset >/dev/null; then
                _command_offset $((index + 1))
            elif ((index + 1 == COMP_CWORD)); then
                _cmapp_files -c
            else
                _cmapp_files -f
            fi
            return 0
        done
    done
    return 1
}

# Prints the first of these words that stands before the one to complete.
_cmapp_one_of() {
    local index word
    for ((index = 1; index < COMP_CWORD; index++)); do
        for word; do
            [[ ${COMP_WORDS[index]} == "$word" ]] && { echo "$word"; return; }
        done
    done
}

