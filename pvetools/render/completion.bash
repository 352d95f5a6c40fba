# -- words that change, read from the files ----------------------------------------------------------------------------
# Every function adds to COMPREPLY what begins with $cur, behind $lead.

_pvetools_add() {
    local word
    for word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$lead$word")
    done
}

_pvetools_guests() {
    local folder=$root/etc/pve/nodes/${HOSTNAME%%.*}/$1 here=$PWD old=$OLDPWD found
    [[ -d $folder && $cur != *[!0-9]* ]] || return
    # Thousands of names: without their folder they need no cutting. Only where we surely come back.
    if [[ . -ef $here ]] && builtin cd -- "$folder" 2>/dev/null; then
        found=("$cur"*.conf)
        builtin cd -- "$here"
        OLDPWD=$old
    else
        found=("$folder/$cur"*.conf)
        found=("${found[@]##*/}")
    fi
    found=("${found[@]%.conf}")
    if [[ $lead ]]; then
        _pvetools_add "${found[@]}"
    elif ((${#COMPREPLY[@]})); then
        COMPREPLY+=("${found[@]}")
    else
        COMPREPLY=("${found[@]}")
    fi
}

_pvetools_storages() {
    local line seen= file=$root/etc/pve/storage.cfg
    if [[ -r $file ]]; then
        while IFS= read -r line; do
            if [[ $line =~ ^[a-z]+:[[:blank:]]*([A-Za-z][A-Za-z0-9._-]*) ]]; then
                _pvetools_add "${BASH_REMATCH[1]}$1"
                [[ ${BASH_REMATCH[1]} == local ]] && seen=1
            fi
        done <"$file"
    fi
    [[ $seen ]] || _pvetools_add "local$1"
}

_pvetools_folder_of() { # storage -> path of its folder, in REPLY
    local line inside= file=$root/etc/pve/storage.cfg
    REPLY=
    if [[ -r $file ]]; then
        while IFS= read -r line; do
            if [[ $line =~ ^[a-z]+:[[:blank:]]*([A-Za-z][A-Za-z0-9._-]*) ]]; then
                inside=
                [[ ${BASH_REMATCH[1]} == "$1" ]] && inside=1
            elif [[ $inside && $line =~ ^[[:blank:]]+path[[:blank:]]+(.*[^[:blank:]]) ]]; then
                REPLY=${BASH_REMATCH[1]}
            fi
        done <"$file"
    fi
    [[ $REPLY || $1 != local ]] || REPLY=$root/var/lib/vz
}

_pvetools_volumes() {
    if [[ $cur != *:* ]]; then
        _pvetools_storages :
        _pvetools_nospace
        return
    fi
    local storage=${cur%%:*} file
    _pvetools_folder_of "$storage"
    [[ $REPLY ]] || return
    # A server that hangs keeps only the process that looks; this shell waits two seconds for it.
    while IFS= read -r -d '' -t 2 file; do
        [[ $file ]] || continue
        file=${file#"$REPLY/"}
        case $file in
            images/*) file=${file#images/} ;;
            template/iso/*) file=iso/${file##*/} ;;
            template/cache/*) file=vztmpl/${file##*/} ;;
            dump/*.log | dump/*.notes | dump/*.protected) continue ;;
            dump/*) file=backup/${file##*/} ;;
        esac
        _pvetools_add "$storage:$file"
    done < <(
        exec </dev/null 2>/dev/null
        printf '%s\0' "$REPLY"/{images/*,template/iso,template/cache,dump,snippets,import}/*
    )
}

_pvetools_nodes() {
    local folder
    for folder in "$root"/etc/pve/nodes/*/; do
        folder=${folder%/}
        _pvetools_add "${folder##*/}"
    done
}

_pvetools_snapshots() {
    local line file
    for file in "$root/etc/pve/nodes/${HOSTNAME%%.*}"/{qemu-server,lxc}/"${given[0]:-none}".conf; do
        [[ -r $file ]] || continue
        while IFS= read -r line; do
            if [[ $line =~ ^\[([A-Za-z][A-Za-z0-9_-]*)\][[:blank:]]*$ && ${BASH_REMATCH[1]} != PENDING ]]; then
                _pvetools_add "${BASH_REMATCH[1]}"
            fi
        done <"$file"
    done
}

_pvetools_tasks() {
    local upid rest file=$root/var/log/pve/tasks/active
    [[ -r $file ]] || return
    while read -r upid rest; do
        _pvetools_add "$upid"
    done <"$file"
}

_pvetools_bridges() {
    local link
    for link in /sys/class/net/*/bridge; do
        link=${link%/bridge}
        _pvetools_add "${link##*/}"
    done
}

# -- values ------------------------------------------------------------------------------------------------------------

_pvetools_nospace() { compopt -o nospace 2>/dev/null; }

_pvetools_value() { # kind; what may follow is in $cur
    local IFS=$' \t\n'
    case $1 in
        vm) _pvetools_guests qemu-server ;;
        ct) _pvetools_guests lxc ;;
        guest) _pvetools_guests qemu-server; _pvetools_guests lxc ;;
        storage) _pvetools_storages "" ;;
        volume) _pvetools_volumes ;;
        node) _pvetools_nodes ;;
        snapshot) _pvetools_snapshots ;;
        upid) _pvetools_tasks ;;
        bridge) _pvetools_bridges ;;
        api_path) _pvetools_paths ;;
        file) compopt -o default 2>/dev/null ;;
        directory) compopt -o dirnames 2>/dev/null ;;
        b) _pvetools_add 0 1 ;;
        e=*) IFS=,; set -- ${1#e=}; _pvetools_add "$@" ;;
        p=*) _pvetools_property "${_pvetools_prop[${1#p=}]}" ;;
    esac
}

_pvetools_kind_of() { # name, " name:kind name:kind " -> kind in REPLY; false for an unknown name
    local name=$1 list=" $2" base=${1%%[0-9]*}
    if [[ $list == *" $name:"* ]]; then
        REPLY=${list#*" $name:"}
    elif [[ $base != "$name" && $list == *" $base#"* ]]; then
        REPLY=${list#*" $base#"}
        REPLY=${REPLY#*:}
    else
        REPLY=
        return 1
    fi
    REPLY=${REPLY%% *}
}

_pvetools_property() { # keys of a property string
    local part=${cur##*,} head key entry
    head=${cur%"$part"}
    _pvetools_nospace
    if [[ $part == *=* ]]; then
        _pvetools_kind_of "${part%%=*}" "${1//^/}" || return
        lead+=$head${part%%=*}= cur=${part#*=}
        _pvetools_value "$REPLY"
        return
    fi
    for entry in $1; do
        key=${entry%%:*}
        if [[ $key == ^* ]]; then # the key that may be left out
            key=${key#^}
            [[ $head ]] || _pvetools_value "${entry#*:}"
        fi
        [[ ",$head" == *",$key="* ]] || cur=$part _pvetools_add_key "$head$key="
    done
}

_pvetools_add_key() { [[ $1 == *"$cur"* && ${1##*,} == "$cur"* ]] && COMPREPLY+=("$lead$1"); }

# -- options and paths -------------------------------------------------------------------------------------------------

_pvetools_option_names() { # " name:kind family#0-3:kind "
    local entry name first last
    [[ $cur == -[!-]* ]] && cur=-$cur
    for entry in $1; do
        name=${entry%%:*}
        if [[ $name == *#* ]]; then
            first=${name#*#} last=${name##*-} first=${first%-*} name=${name%%#*}
            if [[ $cur == "--$name"* ]]; then
                while ((first <= last)); do
                    [[ --$name$first == "$cur"* ]] && COMPREPLY+=("--$name$((first))")
                    ((first++))
                done
                continue
            fi
            name+=$first
        fi
        [[ --$name == "$cur"* ]] && COMPREPLY+=("--$name")
    done
}

_pvetools_match() { # words of a template, words of a path: do they fit?
    local -n _template=$1 _path=$2
    local i
    ((${#_template[@]} >= ${#_path[@]})) || return 1
    for ((i = 0; i < ${#_path[@]}; i++)); do
        [[ ${_template[i]} == "${_path[i]}" || ${_template[i]} == \{* ]] || return 1
    done
}

_pvetools_paths() {
    local IFS=/ last=${cur##*/} head template part=() path=() seen=" " word before
    head=${cur%"$last"}
    path=(${head#/})
    ((${#path[@]})) && before=${path[-1]}
    lead+=${head:-/} cur=$last
    for template in "${_pvetools_api[@]}"; do
        part=(${template#/})
        word=${part[${#path[@]}]-}
        if [[ $word && $seen != *" $word "* ]] && _pvetools_match part path; then
            seen+="$word "
            case $word in
                '{node}') _pvetools_nodes ;;
                '{storage}') _pvetools_storages "" ;;
                '{upid}') _pvetools_tasks ;;
                '{vmid}') if [[ $before == lxc ]]; then _pvetools_guests lxc; else _pvetools_guests qemu-server; fi ;;
                \{*) ;;
                *) _pvetools_add "$word" ;;
            esac
        fi
    done
    _pvetools_nospace
}

_pvetools_template_of() { # path -> the template that it fits, in REPLY
    local IFS=/ template part=() path=()
    path=(${1#/})
    REPLY=
    for template in "${_pvetools_api[@]}"; do
        part=(${template#/})
        if ((${#part[@]} == ${#path[@]})) && _pvetools_match part path; then
            REPLY=$template
            [[ $template == "$1" ]] && return
        fi
    done
}

# -- the command line --------------------------------------------------------------------------------------------------

_pvetools_split() { # words up to the cursor, without readline's cuts at : and =
    local rest=${COMP_LINE:0:COMP_POINT} i word gap
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        gap=${rest%%[![:space:]]*}
        rest=${rest:${#gap}}
        ((i == COMP_CWORD)) && word=$rest
        rest=${rest:${#word}}
        if ((i)) && [[ -z $gap ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
}

_pvetools_command() { # walks the words of the command; sets command and at; false while it is incomplete
    local word match next
    while [[ ${_pvetools_sub[$command]} ]]; do
        ((at < ${#words[@]} - 1)) || return 1
        word=${words[at]} match=
        for next in ${_pvetools_sub[$command]}; do
            [[ $next == "$word" ]] && match=$next && break
            [[ $next == "$word"* ]] && match=$next
        done
        [[ $match ]] || return 1
        ((at++))
        [[ $match == help ]] || command+=" $match"
        command=${_pvetools_alias[$command]:-$command}
    done
}

_pvetools_arguments() { # takes the words behind the command apart; sets given, kind (of the value that is being typed)
    local word name plain=
    kind=
    for ((; at < ${#words[@]} - 1; at++)); do
        word=${words[at]}
        if [[ $word == -- ]]; then
            plain=1
        elif [[ ! $plain && $word == -?* ]]; then
            [[ $word == *=* ]] && continue
            name=${word#-}
            _pvetools_kind_of "${name#-}" "$options" || continue
            if ((at == ${#words[@]} - 2)); then
                [[ $REPLY == b && $cur == -* ]] || kind=${REPLY:-none}
            elif [[ $REPLY != b || ${words[at + 1]} != -* ]]; then
                ((at++))
            fi
        else
            given+=("$word")
        fi
    done
}

_pvetools_options_of() { # command -> its " name:kind " list, in REPLY
    REPLY=${_pvetools_opt[$1]-}
    [[ $REPLY == @* ]] && REPLY=${_pvetools_set[${REPLY#@}]}
}

_pvetools() {
    local - IFS=$' \t\n' LC_ALL=C root=${PVETOOLS_ROOT:-} words=() given=() command=${1##*/} at=1
    local cur= lead= kind= options= positional=() cut had_null had_fail REPLY
    set +f
    shopt -q nullglob; had_null=$?
    shopt -q failglob; had_fail=$?
    shopt -s nullglob
    shopt -u failglob
    COMPREPLY=()
    root=${root%/}
    _pvetools_split
    cur=${words[-1]}
    cut=${cur##*[=:]}
    cut=${cur%"$cut"}
    if ! _pvetools_command; then
        _pvetools_add ${_pvetools_sub[$command]}
    else
        _pvetools_complete
    fi
    [[ $cut && $COMP_WORDBREAKS == *[=:]* ]] && COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    ((had_null)) && shopt -u nullglob
    ((had_fail)) || shopt -s failglob
    return 0
}

_pvetools_complete() {
    _pvetools_options_of "$command"
    options=$REPLY
    if [[ $command == pvesh\ * && ${words[at]-} == /* && ${#words[@]} -gt at+1 ]]; then
        _pvetools_template_of "${words[at]}"
        _pvetools_options_of "$command $REPLY"
        options+=" $REPLY"
    fi
    _pvetools_arguments
    if [[ ! $kind && $cur == -*=* ]]; then
        lead=${cur%%=*}=
        _pvetools_kind_of "${lead//[=-]/}" "$options" || { kind=${lead#-} kind=${kind#-}; _pvetools_kind_of "${kind%=}" "$options"; }
        kind=$REPLY cur=${cur#*=}
    elif [[ ! $kind && $cur == -* ]]; then
        _pvetools_option_names "$options"
        return
    elif [[ ! $kind ]]; then
        positional=(${_pvetools_pos[$command]-})
        kind=${positional[${#given[@]}]-}
        [[ ! $kind && ${positional[-1]-} == *... ]] && kind=${positional[-1]}
        kind=${kind%...}
        if [[ ! $kind ]]; then
            _pvetools_option_names "$options"
            return
        fi
    fi
    _pvetools_value "$kind"
}
