case $1 in
    1) echo one ;;
    2) echo two; kill -SEGV $$ ;;
    3) printf 'caf\351 \377\376 \0 end' ;;
    4) echo four ;;
    5) printf '\\ud800 \\u0000'; exit 1 ;;
esac
