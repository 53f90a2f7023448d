# The pause container of every pod, and a shell with wget and nslookup for pods of tests: one static busybox.
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
USER 65532:65532
ENTRYPOINT ["/bin/busybox", "sleep", "infinity"]
