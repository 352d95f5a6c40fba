// A simulated ESXi host for the tests: main ADDRESS USER PASSWORD. It prints the folders of its datastores and its address.
package main

import (
	"crypto/tls"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func main() {
	model := simulator.ESX()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.Listen = &url.URL{Host: os.Args[1], User: url.UserPassword(os.Args[2], os.Args[3])}
	model.Service.TLS = new(tls.Config)
	server := model.Service.NewServer()
	inner := server.Config.Handler
	// a real host gives files to those who have logged in only
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cookie, err := r.Cookie("vmware_soap_session")
		if strings.HasPrefix(r.URL.Path, "/folder") && (err != nil || len(cookie.Value) != 36) {
			http.Error(w, "log in first", http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})
	for _, entity := range simulator.Map.All("VirtualMachine") {
		machine := entity.(*simulator.VirtualMachine)
		if strings.HasSuffix(machine.Name, "0") {
			machine.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff
		}
	}
	for _, entity := range simulator.Map.All("Datastore") {
		store := entity.(*simulator.Datastore)
		fmt.Printf("store %s %s\n", store.Name, store.Info.GetDatastoreInfo().Url)
	}
	fmt.Printf("address %s\n", server.URL.Host)
	select {}
}
