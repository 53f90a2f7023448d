# The S3 server that the chart can deploy, from the binary that was built here; real users pull versity/versitygw.
FROM scratch
COPY versitygw /usr/bin/versitygw
ENV PATH=/usr/bin
USER 65532:65532
ENTRYPOINT ["versitygw"]
