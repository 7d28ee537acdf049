# bash completion for consort. Commands and options come from the program's own help, so they are
# always those of the version that is installed. Works with bash 3.2 (macOS) and later.

_consort()
{
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local program=${COMP_WORDS[0]} command=${COMP_WORDS[1]} choices=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ] || { [ "$COMP_CWORD" -eq 2 ] && [ "$command" = help ]; }; then
        choices=$("$program" help 2>/dev/null | sed -n 's/^  \([a-z][a-z-]*\) .*/\1/p')
        [ "$COMP_CWORD" -eq 1 ] && choices="$choices --help --version"
    elif [[ $word == -* ]]; then
        choices=$("$program" help "$command" 2>/dev/null |
            sed -n 's/^  ..[, ] \(--[a-z-]*\).*/\1/p')
        choices="$choices --help"
    elif [[ $previous == --* ]]; then
        # The words of a choice such as "--kv-type f16|f32|q8_0".
        choices=$("$program" help "$command" 2>/dev/null |
            sed -n "s/^  ..[, ] $previous \([a-z0-9_]*|[a-z0-9_|]*\).*/\1/p" | tr '|' ' ')
    fi
    # No words here contain spaces; without any, bash completes file names.
    # shellcheck disable=SC2207
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}

complete -o default -F _consort consort
