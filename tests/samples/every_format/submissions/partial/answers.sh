case $1 in
    1) echo one ;;
    2) echo "zwei, ✓" ;;
    3) echo three ;;
    *) echo "<script>alert(document.cookie)</script>" ;;
esac
