case $1 in
    1) seq 1 60000 | tr '\n' ' ' ;;
    2) echo two ;;
    *) head -c 300000 /dev/zero | tr '\0' x ;;
esac
